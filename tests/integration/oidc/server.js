// A certified OAuth 2.0 server on a free loopback port, for the integration tests.
//
// Its first line of output is its port. The credentials of its two clients, one that gets
// tokens and one that asks about them, come as JSON in the environment.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const { client, asker } = JSON.parse(process.env.OIDC_CLIENTS);

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
      { ...machine, client_id: asker.id, client_secret: asker.secret },
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
