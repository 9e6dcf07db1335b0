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

# The containers' user must be able to read these; they serve this machine only.
keys=deploy/keys
mkdir -p "$keys"
[ -f "$keys/seeder.key" ] || "$context/bin/seeder" keygen "$keys/seeder.key"
[ -f "$keys/gossip.key" ] || "$context/bin/seeder" keygen --gossip-key "$keys/gossip.key"
chmod 0444 "$keys"/*

cp deploy/Dockerfile "$context/Dockerfile"
for image in seeder agent landfall-dev; do
	docker build --quiet --target "$image" --tag "landfall/$image:dev" "$context"
done
