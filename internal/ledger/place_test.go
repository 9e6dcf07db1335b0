package ledger

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
)

// described is a ledger in a region whose DescribeTable answers with these attributes
// beside the key; an empty answer is that there is no such table.
func described(t *testing.T, region, attributes string) *Ledger {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if attributes == "" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"__type":"com.amazonaws.dynamodb.v20120810#ResourceNotFoundException","message":"Requested resource not found: Table: T not found"}`) //nolint:errcheck // the client's error shows it
			return
		}
		fmt.Fprintf(w, `{"Table":{"TableStatus":"ACTIVE","KeySchema":[{"AttributeName":"fileKey","KeyType":"HASH"},{"AttributeName":"sourceBucket","KeyType":"RANGE"}],%s}}`, attributes)
	}))
	t.Cleanup(server.Close)
	client := dynamodb.NewFromConfig(cloud.AWS, func(o *dynamodb.Options) { o.BaseEndpoint, o.Region = &server.URL, region })
	return New(client, "T")
}

func TestPlace(t *testing.T) {
	const arn = `"TableArn":"arn:aws:dynamodb:us-east-1:123456789012:table/T"`
	global := func(consistency string) string {
		return arn + `,"MultiRegionConsistency":"` + consistency + `","Replicas":[{"RegionName":"eu-west-1"},{"RegionName":"ap-south-1"}]`
	}
	for name, c := range map[string]struct {
		attributes, theirs string
		global             bool
		want               []string // of the error; nil for none
	}{
		"the same":                  {arn, "us-east-1/123456789012/T", false, nil},
		"not told":                  {arn, "", false, nil},
		"not a place":               {arn, "us-east-1", false, nil},
		"the store has no regions":  {`"TableName":"T"`, "eu-west-1/123456789012/T", false, nil},
		"another region":            {arn, "eu-west-1/123456789012/T", false, []string{"this agent records arrivals", "us-east-1", "seeder s reads", "eu-west-1", "--table-region eu-west-1"}},
		"another name":              {arn, "us-east-1/123456789012/U", false, []string{"table U", "--table U"}},
		"another account":           {arn, "us-east-1/210987654321/T", false, []string{"account 210987654321", "123456789012"}},
		"another account elsewhere": {arn, "eu-west-1/210987654321/T", false, []string{"account 210987654321"}},
		"eventual, the same":        {global("EVENTUAL"), "us-east-1/123456789012/T", false, nil},
		"eventual":                  {global("EVENTUAL"), "eu-west-1/123456789012/T", true, []string{"global table", "us-east-1", "eu-west-1", "--table-region eu-west-1"}},
		"of an earlier kind":        {arn + `,"Replicas":[{"RegionName":"eu-west-1"}]`, "eu-west-1/123456789012/T", true, []string{"global table"}},
		"strong":                    {global("STRONG"), "eu-west-1/123456789012/T", false, nil},
		"strong, no replica there":  {global("STRONG"), "us-west-2/123456789012/T", false, []string{"us-west-2"}},
		"eventual, no replica":      {global("EVENTUAL"), "us-west-2/123456789012/T", false, []string{"us-west-2"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := described(t, "us-east-1", c.attributes)
			if l.Place().String() != "" {
				t.Errorf("%s before the table was looked at", l.Place())
			}
			if err := l.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			err := l.Place().Differs("this agent", "seeder s", l.Place().Of(c.theirs))
			if (err != nil) != (c.want != nil) || errors.Is(err, ErrGlobalTable) != c.global {
				t.Fatalf("error %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q lacks %q", err, w)
				}
			}
			if eventual := strings.Contains(c.attributes, "Replicas") && !strings.Contains(c.attributes, "STRONG"); l.Place().Eventual() != eventual {
				t.Errorf("eventual %v, want %v", !eventual, eventual)
			}
		})
	}
}

// A name, or an ARN, as long as DynamoDB allows is told in few bytes, and still tells
// tables apart.
func TestLongPlace(t *testing.T) {
	long := strings.Repeat("n", 254)
	var places []string
	for _, name := range []string{long + "a", long + "b", "arn:aws:dynamodb:us-east-1:123456789012:table/" + long + "b"} {
		l := described(t, "us-east-1", `"TableArn":"arn:aws:dynamodb:us-east-1:123456789012:table/`+name[strings.LastIndexByte(name, '/')+1:]+`"`)
		l.table = name
		if err := l.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		places = append(places, l.Place().String())
	}
	if len(places[0]) > 128 || places[0] == places[1] || places[1] != places[2] {
		t.Errorf("%q", places)
	}
}

// A table that is missing is missing somewhere.
func TestMissingTableNamesTheRegion(t *testing.T) {
	err := described(t, "eu-west-1", "").Check(t.Context())
	if !errors.Is(err, ErrNoTable) {
		t.Fatal(err)
	}
	for _, want := range []string{"table T", "eu-west-1", "--table-region", "seeder init"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}
