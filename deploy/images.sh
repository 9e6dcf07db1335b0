#!/bin/sh
# Builds the three images from static binaries made on this host, and the keys
# that docker-compose.yml hands to the members. Keys that exist are kept.
set -eu
cd "$(dirname "$0")/.."

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

CGO_ENABLED=0 go build -trimpath -o "$context/bin/" ./cmd/...
mkdir -p "$context/data" "$context/rootfs/etc/ssl/certs"
touch "$context/data/.keep"

# Roots for HTTPS to AWS: the host's.
for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
	if [ -f "$bundle" ]; then
		cp "$bundle" "$context/rootfs/etc/ssl/certs/ca-certificates.crt"
		break
	fi
done
[ -f "$context/rootfs/etc/ssl/certs/ca-certificates.crt" ] ||
	{ echo 'no CA certificates on this host: install ca-certificates' >&2; exit 1; }

# The containers' user reads these as a member of their group, which
# docker-compose.yml finds in .env; everybody else on this machine does not.
keys=deploy/keys
mkdir -p "$keys"
[ -f "$keys/seeder.key" ] || "$context/bin/seeder" keygen "$keys/seeder.key"
[ -f "$keys/gossip.key" ] || "$context/bin/seeder" keygen --gossip-key "$keys/gossip.key"
[ -f "$keys/operator.token" ] || "$context/bin/seeder" keygen --operator-token "$keys/operator.token"
chmod 0700 "$keys"
chmod 0640 "$keys/seeder.key" "$keys/gossip.key" "$keys/operator.token"
chmod 0644 "$keys/seeder.key.pub"
group=$(stat -c %g "$keys/seeder.key" 2>/dev/null || stat -f %g "$keys/seeder.key")
chgrp "$group" "$keys"/*
echo "KEYS_GROUP=$group" >.env

cp deploy/Dockerfile "$context/Dockerfile"
for image in seeder agent landfall-dev; do
	docker build --quiet --target "$image" --tag "landfall/$image:dev" "$context"
done
