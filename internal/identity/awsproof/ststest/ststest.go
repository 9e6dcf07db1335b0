// Package ststest answers sts:GetCallerIdentity for tests, as the API reference of AWS STS
// has it.
package ststest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/landfall-dist/landfall/internal/identity/awsproof"
)

// Caller is whom an access key is of.
type Caller struct{ Secret, ARN string }

// New serves until the test ends, for callers by their access key. Signatures are checked
// as Signature Version 4 says, by signing what came once more.
func New(t testing.TB, callers map[string]Caller) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		given := r.Header.Get("Authorization")
		id, _, _ := strings.Cut(strings.TrimPrefix(given, "AWS4-HMAC-SHA256 Credential="), "/")
		at, dateErr := time.Parse(awsproof.DateFormat, r.Header.Get("X-Amz-Date"))
		caller, known := callers[id]
		if err != nil || dateErr != nil || string(text) != awsproof.Body || !known {
			refuse(w, "InvalidClientTokenId")
			return
		}
		again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.Path, strings.NewReader(awsproof.Body))
		if err != nil {
			t.Error(err)
			return
		}
		for _, name := range []string{"Content-Type", awsproof.ClusterHeader, awsproof.KeyHeader} {
			again.Header.Set(name, r.Header.Get(name))
		}
		sum := sha256.Sum256(text)
		err = v4.NewSigner().SignHTTP(r.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: caller.Secret, SessionToken: r.Header.Get("X-Amz-Security-Token")},
			again, hex.EncodeToString(sum[:]), "sts", "us-east-1", at)
		if err != nil || again.Header.Get("Authorization") != given {
			refuse(w, "SignatureDoesNotMatch")
			return
		}
		fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>%s</Arn><UserId>AROA:i-0abc</UserId><Account>%s</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`,
			caller.ARN, strings.Split(caller.ARN+"::::", ":")[4])
	}))
	t.Cleanup(server.Close)
	return server
}

func refuse(w http.ResponseWriter, code string) {
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code></Error></ErrorResponse>`, code)
}
