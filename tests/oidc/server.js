// A certified OpenID provider (npm oidc-provider) for the end-to-end tests: login page, consent page,
// a groups claim, one confidential client. Loopback only; any password is right.
//
// Environment: PORT (0: any), REDIRECT_URI (its port is not compared), CLIENT_ID, CLIENT_SECRET.
// Prints one line, {"issuer": "http://127.0.0.1:PORT"}, when it is ready. Ends when standard input does.
import http from 'node:http';

import { Provider } from 'oidc-provider';

const groups = { alice: ['engineering'], bob: ['support'], auditor: ['auditors'], admin: ['admins'] };
const environment = (name) => process.env[name] ?? fail(`${name} is not set`);

function fail(message) {
  console.error(message);
  process.exit(2);
}

function account(name) {
  if (!Object.hasOwn(groups, name)) return undefined;
  const claims = {
    sub: name,
    email: `${name}@example.com`,
    email_verified: true,
    preferred_username: name,
    groups: groups[name],
  };
  return { accountId: name, claims: async () => claims };
}

function withoutPort(address) {
  const url = new URL(address);
  url.port = '';
  return url.href;
}

const redirectUri = environment('REDIRECT_URI');
const server = http.createServer();
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{
      client_id: environment('CLIENT_ID'),
      client_secret: environment('CLIENT_SECRET'),
      redirect_uris: [redirectUri],
      grant_types: ['authorization_code'],
      response_types: ['code'],
    }],
    claims: {
      openid: ['sub'],
      email: ['email', 'email_verified'],
      profile: ['preferred_username'],
      groups: ['groups'],
    },
    findAccount: (_, name) => account(name),
    pkce: { required: () => true },
    features: { devInteractions: { enabled: true } },
  });
  // The plane under test gets free ports, which are not known when the provider starts.
  provider.Client.prototype.redirectUriAllowed = (asked) => withoutPort(asked) === withoutPort(redirectUri);
  server.on('request', provider.callback());
  console.log(JSON.stringify({ issuer }));
});

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
