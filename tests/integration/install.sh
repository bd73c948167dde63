#!/bin/sh
# What the integration tests need beside the Python packages of the extra "test".
set -eu
cd "$(dirname "$0")"

# A certified OAuth 2.0 server, for test_oidc; Node.js 20 or later and npm must be there.
npm ci --prefix oidc --no-audit --no-fund
