package ledger

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
)

func TestBaseline(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		if _, err := l.Baseline(t.Context(), "global-builds"); !errors.Is(err, ErrNoBaseline) {
			t.Fatalf("empty table: %v", err)
		}
		old := make([]ObjectVersion, maxListChunk+3)
		for i := range old {
			old[i] = ObjectVersion{uint64(i), ^uint64(i)}
		}
		b := NewBaseline("global-builds")
		scope := Scope{"releases/", ".zip"}
		if err := l.Extend(t.Context(), b, scope, old); err != nil {
			t.Fatal(err)
		}
		if err := l.Extend(t.Context(), NewBaseline("global-builds"), scope, nil); !errors.Is(err, ErrBaselineChanged) {
			t.Errorf("the slower of two first starts: %v", err)
		}
		var sent []ObjectVersion
		for i := range maxSentChunk + 2 {
			sent = append(sent, ObjectVersion{uint64(i % 7), uint64(i)})
		}
		stale, err := l.Baseline(t.Context(), "global-builds")
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]ObjectVersion{sent[:1], sent[1:]} {
			if n, err := l.AddSent(t.Context(), b, part); err != nil || n != len(part) {
				t.Fatalf("%d of %d, %v", n, len(part), err)
			}
		}
		if n, err := l.AddSent(t.Context(), stale, sent[:1]); n != 0 || !errors.Is(err, ErrBaselineChanged) {
			t.Errorf("written over another seeder's: %d, %v", n, err)
		}
		if err := l.Extend(t.Context(), b, Scope{}, old[:1]); err != nil {
			t.Fatal(err)
		}
		got, err := l.Baseline(t.Context(), "global-builds")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Sent, sent) || len(got.Old) != len(old)+1 || !slices.Equal(got.Scopes, []Scope{{}, scope}) {
			t.Errorf("%d sent, %d old, scopes %v", len(got.Sent), len(got.Old), got.Scopes)
		}
		if _, err := l.AddSent(t.Context(), got, sent[:1]); err != nil {
			t.Errorf("going on from what was read: %v", err)
		}
		if err := l.Scan(t.Context(), Scan{
			Record:     func(r *Record) { t.Errorf("%+v is no execution", r) },
			Unreadable: func(u *Unreadable) { t.Errorf("%v is a note of the seeder's own", u) },
		}); err != nil {
			t.Error(err)
		}
	})
}

// What is not as it was written is an error that says what to do, never "nothing is
// old".
func TestDamagedBaseline(t *testing.T) {
	l := New(cloud.DynamoDB, cloud.Table(t))
	b := NewBaseline("global-builds")
	if err := l.Extend(t.Context(), b, Scope{}, []ObjectVersion{{1, 2}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddSent(t.Context(), b, []ObjectVersion{{1, 2}}); err != nil {
		t.Fatal(err)
	}
	head := baselinePrefix + "global-builds"
	for _, name := range []string{head, listChunk("global-builds", b.lists[0].id, 0), sentChunk("global-builds", 0)} {
		good, err := l.row(t.Context(), name)
		if err != nil || good == nil {
			t.Fatal(name, err)
		}
		bad := []item{}
		for _, i := range []item{
			{"version": text("x"), "versions": text("x")},
			{"version": number(-1), "versions": number(7)},
			{"scopes": number(1), "lists": text("x"), "versions": encodeVersions(make([]ObjectVersion, maxListChunk+1))},
			{"version": number(1)},
		} {
			key := ownRow(name)
			for k, v := range i {
				key[k] = v
			}
			bad = append(bad, key)
		}
		for _, row := range bad {
			put(t, l, row)
			if _, err := l.Baseline(t.Context(), "global-builds"); err == nil || !strings.Contains(err.Error(), "delete the item") {
				t.Errorf("%s as %v: %v", name, row, err)
			}
		}
		put(t, l, good)
	}
	if _, err := l.Baseline(t.Context(), "global-builds"); err != nil {
		t.Fatal(err)
	}
	_, err := cloud.DynamoDB.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{
		TableName: aws.String(l.Table()), Key: ownRow(listChunk("global-builds", b.lists[0].id, 0)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Baseline(t.Context(), "global-builds"); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("without a chunk: %v", err)
	}
}

func TestBaselineIsBounded(t *testing.T) {
	l := New(cloud.DynamoDB, cloud.Table(t))
	b := NewBaseline("global-builds")
	b.held = MaxVersions
	one := []ObjectVersion{{1, 1}}
	if err := l.Extend(t.Context(), b, Scope{}, one); err == nil || !strings.Contains(err.Error(), "--prefix") {
		t.Errorf("one object too many: %v", err)
	}
	if _, err := l.AddSent(t.Context(), b, one); err == nil {
		t.Error("one sent object too many")
	}
	b.held = 0
	for i := range maxScopes + 2 {
		if err := l.Extend(t.Context(), b, Scope{Prefix: strings.Repeat("x", i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	got, err := l.Baseline(t.Context(), "global-builds")
	if err != nil || len(got.Scopes) != maxScopes || len(got.Scopes[0].Prefix) != maxScopes+1 {
		t.Errorf("%d scopes, %v", len(got.Scopes), err)
	}
}

func put(t *testing.T, l *Ledger, row item) {
	t.Helper()
	if _, err := l.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &l.table, Item: row}); err != nil {
		t.Fatal(err)
	}
}
