package awsproof

import (
	"strings"
	"testing"
	"time"
)

// FuzzProof: a proof that is taken has signed what makes it one for this cluster and key, is
// fresh, and puts no line of its own into the request to STS.
func FuzzProof(f *testing.F) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	f.Add("AWS4-HMAC-SHA256 Credential=AKID/20260601/us-east-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-landfall-cluster;x-landfall-key, Signature="+strings.Repeat("0", 64), now.Format(DateFormat), "")
	f.Add("AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=0", "20260601T120000Z", "token\r\nX: y")
	c := Checker{Cluster: "prod", Now: func() time.Time { return now }}
	f.Fuzz(func(t *testing.T, authorization, date, token string) {
		if c.wellFormed(Proof{Authorization: authorization, Date: date, Token: token}) != nil {
			return
		}
		if strings.ContainsAny(authorization+date+token, "\r\n") || len(authorization)+len(date)+len(token) > 3*maxHeader {
			t.Errorf("%q, %q, %q", authorization, date, token)
		}
		for _, name := range []string{"host", "x-amz-date", strings.ToLower(ClusterHeader), strings.ToLower(KeyHeader)} {
			if !strings.Contains(authorization, name) {
				t.Errorf("%q leaves %s out", authorization, name)
			}
		}
		if made, err := time.Parse(DateFormat, date); err != nil || made.Sub(now).Abs() > maxAge {
			t.Errorf("it was made at %s", date)
		}
	})
}

// FuzzCaller: whatever STS answers, it names somebody or nobody.
func FuzzCaller(f *testing.F) {
	f.Add([]byte(`<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:sts::123456789012:assumed-role/a/b</Arn><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`))
	f.Add([]byte(`<a><a><a>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if caller, ok := readCaller(text); ok && (!strings.HasPrefix(caller.ARN, "arn:") || caller.Account == "") {
			t.Errorf("%+v", caller)
		}
	})
}
