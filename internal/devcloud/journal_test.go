package devcloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestJournalTail(t *testing.T) {
	whole := `{"target":"A","body":{}}` + "\n" + `{"target":"B","body":{"x":[1]}}` + "\n"
	for _, tt := range []struct {
		name, text string
		want       []string
		bad        bool
	}{
		{"empty", "", nil, false},
		{"whole", whole, []string{"A", "B"}, false},
		{"torn", whole + `{"target":"C","bo`, []string{"A", "B"}, false},
		{"only torn", `{"tar`, nil, false},
		{"whole but for the line break", whole + `{"target":"C","body":{}}`, []string{"A", "B"}, false},
		{"garbled last line", whole + "\x00\x00\x00\n", []string{"A", "B"}, false},
		{"garbled in the middle", "\x00\x00\n" + whole, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			j, got, err := readJournal(path)
			if tt.bad {
				if err == nil {
					t.Fatal("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("records %v, want %v", got, tt.want)
			}
			// Whatever was there, a new record is read back after it.
			if err := j.append(record{Target: "D", Body: json.RawMessage("{\n\"x\": \"<&>\"\n}")}); err != nil {
				t.Fatal(err)
			}
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			j, got, err = readJournal(path)
			if err != nil {
				t.Fatal(err)
			}
			defer j.close()
			if want := append(tt.want, "D"); !slices.Equal(got, want) {
				t.Errorf("records after append %v, want %v", got, want)
			}
		})
	}
}

func readJournal(path string) (*journal, []string, error) {
	var targets []string
	j, err := openJournal(path, func(r record) error {
		targets = append(targets, r.Target)
		return nil
	})
	return j, targets, err
}

func openTestDatabase(t *testing.T, dir string) *database {
	t.Helper()
	db, err := openDatabase(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// do makes a call and returns its answer as JSON.
func do(t *testing.T, db *database, target, body string) string {
	t.Helper()
	out, err := db.call(target, []byte(body))
	if err != nil {
		t.Fatalf("%s %s: %v", target, body, err)
	}
	text, err := encode(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const createItems = `{"TableName":"items","BillingMode":"PAY_PER_REQUEST",
	"AttributeDefinitions":[{"AttributeName":"fileKey","AttributeType":"S"}],
	"KeySchema":[{"AttributeName":"fileKey","KeyType":"HASH"}]}`

func TestJournalCompaction(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	db := openTestDatabase(t, dir)
	do(t, db, "CreateTable", createItems)
	do(t, db, "CreateTable", strings.ReplaceAll(createItems, "items", "dropped"))
	filler := strings.Repeat("x", 1<<20)
	for i := range compactFrom>>20 + 1 {
		do(t, db, "PutItem", fmt.Sprintf(`{"TableName":"items","Item":{"fileKey":{"S":"k"},"version":{"N":"%d"},"filler":{"S":%q}}}`, i, filler))
	}
	do(t, db, "UpdateItem", `{"TableName":"items","Key":{"fileKey":{"S":"k"}},"UpdateExpression":"REMOVE filler"}`)
	do(t, db, "PutItem", `{"TableName":"items","Item":{"fileKey":{"S":"l"},"map":{"M":{}},"list":{"L":[]},"set":{"SS":["b","a"]},"n":{"N":"5497558138881"}}}`)
	do(t, db, "DeleteTable", `{"TableName":"dropped"}`)
	const scan = `{"TableName":"items"}`
	want := do(t, db, "Scan", scan) + do(t, db, "DescribeTable", scan) + do(t, db, "ListTables", `{}`)
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		db = openTestDatabase(t, dir)
		if got := do(t, db, "Scan", scan) + do(t, db, "DescribeTable", scan) + do(t, db, "ListTables", `{}`); got != want {
			t.Errorf("after opening: %s\nbefore: %s", got, want)
		}
		if err := db.close(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 4<<10 {
			t.Errorf("the journal has %d bytes for two small items", info.Size())
		}
	}
}

func TestReplayMustAgree(t *testing.T) {
	for _, line := range []string{
		`{"target":"PutItem","body":{"TableName":"missing","Item":{}}}`,
		`{"target":"GetItem","body":{}}`,
		`{"target":"Nonsense","body":{}}`,
		`{"target":"CreateTable","body":` + strings.ReplaceAll(createItems, "\n", " ") + `,"failed":true}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "journal"), []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openDatabase(dir, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s was replayed without an error", line)
		}
	}
}

func TestReadsAndRefusalsAreNotJournaled(t *testing.T) {
	db := openTestDatabase(t, t.TempDir())
	defer db.close()
	do(t, db, "CreateTable", createItems)
	do(t, db, "PutItem", `{"TableName":"items","Item":{"fileKey":{"S":"k"}}}`)
	size := db.journal.size
	do(t, db, "Scan", `{"TableName":"items"}`)
	if _, err := db.call("PutItem", []byte(`{"TableName":"items","Item":{"fileKey":{"S":"k"}},"ConditionExpression":"attribute_not_exists(fileKey)"}`)); !refused(err) {
		t.Fatalf("error %v, want a refused condition", err)
	}
	if db.journal.size != size {
		t.Errorf("the journal grew from %d to %d bytes", size, db.journal.size)
	}
}

// A write that did not reach the disk must not be seen by anyone.
func TestJournalFailureStopsTheDatabase(t *testing.T) {
	db := openTestDatabase(t, t.TempDir())
	do(t, db, "CreateTable", createItems)
	if err := db.journal.file.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.call("PutItem", []byte(`{"TableName":"items","Item":{"fileKey":{"S":"k"}}}`)); errorCode(err) != internalError {
		t.Errorf("write: %v", err)
	}
	if _, err := db.call("GetItem", []byte(`{"TableName":"items","Key":{"fileKey":{"S":"k"}}}`)); errorCode(err) != internalError {
		t.Errorf("read after it: %v", err)
	}
	if err := db.close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("close: %v", err)
	}
}
