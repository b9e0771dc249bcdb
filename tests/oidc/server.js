// A certified OpenID provider (npm oidc-provider) for the end-to-end tests: login page, consent page,
// a groups claim, one confidential client, refresh tokens that rotate, revocation. Loopback only; any password is right.
//
// Environment: PORT (0: any), REDIRECT_URI (its port is not compared), CLIENT_ID, CLIENT_SECRET, REFRESH ("off": no refresh tokens).
// Prints one line, {"issuer": "http://127.0.0.1:PORT"}, when it is ready. Ends when standard input does.
//
// A line on standard input is a command, and is answered by a line that begins with {"done"}:
//   {"groups": {"alice": ["support"]}}   the groups of alice from now on
//   {"withdraw": "alice"}                every grant of alice ends: her refresh tokens are answered with invalid_grant
//   {"down": true}                       every request is answered with 503, until {"down": false}
//   {}                                   answers with how often a refresh token was used, and how many were revoked
//   {"tokens": true}                     answers with every refresh token that was given
import http from 'node:http';
import readline from 'node:readline';

import { Provider } from 'oidc-provider';

const groups = { alice: ['engineering'], bob: ['support'], auditor: ['auditors'], admin: ['admins'] };
const grants = {};
const counts = { refreshed: 0, revoked: 0 };
const tokens = [];
let down = false;
const environment = (name) => process.env[name] ?? fail(`${name} is not set`);
const refreshes = process.env.REFRESH !== 'off';

function fail(message) {
  console.error(message);
  process.exit(2);
}

function account(name) {
  if (!Object.hasOwn(groups, name)) return undefined;
  const claims = () => ({
    sub: name,
    email: `${name}@example.com`,
    email_verified: true,
    preferred_username: name,
    groups: groups[name],
  });
  return { accountId: name, claims: async () => claims() };
}

function withoutPort(address) {
  const url = new URL(address);
  url.port = '';
  return url.href;
}

async function obey(provider, command) {
  Object.assign(groups, command.groups);
  down = command.down ?? down;
  for (const grantId of grants[command.withdraw] ?? []) {
    await provider.RefreshToken.revokeByGrantId(grantId);
    await provider.AccessToken.revokeByGrantId(grantId);
    await (await provider.Grant.find(grantId))?.destroy();
  }
  return command.tokens ? { tokens } : counts;
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
      grant_types: refreshes ? ['authorization_code', 'refresh_token'] : ['authorization_code'],
      response_types: ['code'],
    }],
    claims: {
      openid: ['sub'],
      email: ['email', 'email_verified'],
      profile: ['preferred_username'],
      groups: ['groups'],
    },
    findAccount: (_, name) => account(name),
    acrValues: ['urn:example:two-factors'],
    pkce: { required: () => true },
    // As Keycloak does: with every login, whatever its scopes.
    issueRefreshToken: async (_, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    features: { devInteractions: { enabled: true }, revocation: { enabled: true } },
  });
  // The person at the development pages does whatever is asked: a class of authentication that is wanted is reached.
  const finished = provider.interactionFinished.bind(provider);
  provider.interactionFinished = async (request, response, result, options) => {
    const { params } = await provider.interactionDetails(request, response);
    const acr = params.acr_values?.split(' ')[0];
    const reached = result.login && acr ? { ...result, login: { ...result.login, acr } } : result;
    return finished(request, response, reached, options);
  };
  // The plane under test gets free ports, which are not known when the provider starts.
  provider.Client.prototype.redirectUriAllowed = (asked) => withoutPort(asked) === withoutPort(redirectUri);
  provider.on('refresh_token.saved', (token) => {
    (grants[token.accountId] ??= new Set()).add(token.grantId);
    tokens.push(token.jti);
  });
  provider.on('grant.success', (context) => {
    if (context.oidc.params.grant_type === 'refresh_token') counts.refreshed += 1;
  });
  provider.on('refresh_token.destroyed', () => (counts.revoked += 1));
  const callback = provider.callback();
  server.on('request', (request, response) => {
    if (!down) return callback(request, response);
    response.writeHead(503).end('down for maintenance');
  });
  console.log(JSON.stringify({ issuer }));
  const commands = readline.createInterface({ input: process.stdin });
  commands.on('line', async (line) => {
    const said = await obey(provider, JSON.parse(line)).catch((error) => ({ failed: String(error) }));
    console.log(JSON.stringify({ done: true, ...said }));
  });
  commands.on('close', () => process.exit(0));
});
