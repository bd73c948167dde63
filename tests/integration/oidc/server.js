// A certified OAuth 2.0 server on a free loopback port, for the integration tests.
//
// It prints its port as the first line of output. OIDC_CLIENTS holds the credentials of its two
// clients as JSON: one gets tokens, the other one, a resource server, introspects them.
//
// Tokens for a resource of RESOURCES (RFC 8707) are JWTs (RFC 9068), other tokens are opaque.
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const { client, resourceServer } = JSON.parse(process.env.OIDC_CLIENTS);

const machine = {
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  token_endpoint_auth_method: 'client_secret_basic',
};

const RESOURCES = {
  'https://push.example/': 'PS256',
  'https://push.example/ed25519': 'EdDSA',
};

function signingKey(kid, type, options) {
  const { privateKey } = generateKeyPairSync(type, options);
  return { ...privateKey.export({ format: 'jwk' }), kid, use: 'sig' };
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [
      { ...machine, client_id: client.id, client_secret: client.secret, scope: 'news editor' },
      { ...machine, client_id: resourceServer.id, client_secret: resourceServer.secret },
    ],
    scopes: ['news', 'editor'],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'news editor',
          audience: resource,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: RESOURCES[resource] } },
        }),
      },
    },
    jwks: {
      keys: [signingKey('rsa', 'rsa', { modulusLength: 2048 }), signingKey('ed', 'ed25519')],
    },
    ttl: { ClientCredentials: () => 600 },
  });
  server.on('request', provider.callback());
  console.log(port);
});
