#!/bin/sh
# What the integration tests need beside the Python packages of the extra "test"; on Debian, as root.
set -eu
cd "$(dirname "$0")"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq

# A certified OAuth 2.0 server, for test_oidc.
command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends nodejs npm
npm ci --prefix oidc --no-audit --no-fund

# ActiveMQ, and a JDK for its JMS peer (tests/integration/jms). Nothing is started as a service:
# the tests run a broker of their own.
apt-get install -y -qq --no-install-recommends activemq
command -v javac >/dev/null || apt-get install -y -qq --no-install-recommends default-jdk-headless

# Kafka, one node of which the tests start: its artifacts come from Maven's repository.
command -v mvn >/dev/null || apt-get install -y -qq --no-install-recommends maven
mvn -q -B -f kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$PWD/kafka/jars"

# A scanner of TLS servers, for test_tls_scan, with the tools that it calls; and a browser.
apt-get install -y -qq --no-install-recommends testssl.sh openssl bsdextrautils procps chromium

# What stands in front of a topicsvc, with the files of examples/, and what reads systemd's units.
apt-get install -y -qq --no-install-recommends nginx-light haproxy systemd

# Prometheus and its promtool, for test_metrics. Nothing is started as a service.
apt-get install -y -qq --no-install-recommends prometheus

# What sets the time of day for one process alone, for test_clock.
apt-get install -y -qq --no-install-recommends faketime curl
