#!/bin/sh
# What the integration tests need, on a Debian machine; run it as root.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq

# ActiveMQ, and a JDK for its JMS peer (tests/integration/jms). Nothing is started as a service:
# the tests run a broker of their own.
apt-get install -y -qq --no-install-recommends activemq
command -v javac >/dev/null || apt-get install -y -qq --no-install-recommends default-jdk-headless
