// A certified OAuth 2.0 server on a free loopback port, for the integration tests.
//
// It prints its port as the first line of output. OIDC_CLIENTS holds the credentials of its two
// clients as JSON: one gets tokens, the other one, a resource server, introspects them.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const { client, resourceServer } = JSON.parse(process.env.OIDC_CLIENTS);

const machine = {
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  token_endpoint_auth_method: 'client_secret_basic',
};

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
    },
    ttl: { ClientCredentials: () => 600 },
  });
  server.on('request', provider.callback());
  console.log(port);
});
