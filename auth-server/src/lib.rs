//! The auth server: certificates, login, join, policy, audit
