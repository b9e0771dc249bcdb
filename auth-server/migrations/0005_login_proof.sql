-- What a login asks the person to prove: JSON {fresh, mfa, acr}; null is nothing beyond what the provider asks.
ALTER TABLE logins ADD COLUMN proof TEXT;
