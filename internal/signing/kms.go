package signing

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// KMSPrefix stands before a key of AWS KMS where a file may be named, too.
const KMSPrefix = "awskms:"

// KMS is the Signer of a key in AWS KMS, which never leaves it.
type KMS struct {
	client *kms.Client
	id     string
	key    PublicKey
}

// OpenKMS asks AWS KMS for the public half of a key (kms:GetPublicKey), by its id, ARN or
// alias. It must be made for signing, with ECDSA on P-256 (ECC_NIST_P256).
func OpenKMS(ctx context.Context, cfg aws.Config, id string) (*KMS, error) {
	k := &KMS{client: kms.NewFromConfig(cfg), id: id}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	out, err := k.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &id})
	if err != nil {
		return nil, fmt.Errorf("signing key %s%s: %w", KMSPrefix, id, err)
	}
	public, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("signing key %s%s: %w", KMSPrefix, id, err)
	}
	ec, ok := public.(*ecdsa.PublicKey)
	if !ok || out.KeyUsage != types.KeyUsageTypeSignVerify {
		return nil, fmt.Errorf("signing key %s%s: it is a %s for %s; make one of ECC_NIST_P256 for SIGN_VERIFY", KMSPrefix, id, out.KeySpec, out.KeyUsage)
	}
	if k.key, err = ECDSAKey(ec); err != nil {
		return nil, fmt.Errorf("signing key %s%s: %w", KMSPrefix, id, err)
	}
	return k, nil
}

// Public is the key's public half.
func (k *KMS) Public() PublicKey { return k.key }

// Sign asks AWS KMS (kms:Sign).
func (k *KMS) Sign(ctx context.Context, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	digest := sha256.Sum256(message)
	out, err := k.client.Sign(ctx, &kms.SignInput{
		KeyId: &k.id, Message: digest[:], MessageType: types.MessageTypeDigest,
		SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
	})
	if err != nil {
		return nil, fmt.Errorf("signing by %s%s: %w", KMSPrefix, k.id, err)
	}
	signature, err := plain(out.Signature)
	if err != nil {
		return nil, fmt.Errorf("signing by %s%s: %w", KMSPrefix, k.id, err)
	}
	return checked(k.key, message, signature, KMSPrefix+k.id)
}

// plain turns an ECDSA signature in DER (RFC 3279, 2.2.3) into r and s, 32 bytes each.
func plain(der []byte) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &pair); err != nil || len(rest) > 0 {
		return nil, errors.New("the signature is not ASN.1")
	}
	if pair.R.Sign() <= 0 || pair.S.Sign() <= 0 || pair.R.BitLen() > 256 || pair.S.BitLen() > 256 {
		return nil, errors.New("the signature is not of P-256")
	}
	out := make([]byte, SignatureSize)
	pair.R.FillBytes(out[:32])
	pair.S.FillBytes(out[32:])
	return out, nil
}
