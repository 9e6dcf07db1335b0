package devcloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/gofiber/fiber/v3"
	"github.com/truora/minidyn/server"
)

const (
	// targetPrefix is the name and version of the DynamoDB API in X-Amz-Target.
	targetPrefix = "DynamoDB_20120810."
	// maxBody is DynamoDB's own limit on the body of a request in bytes.
	maxBody = 16 << 20
	// compactFrom is the size in bytes from which the journal is rewritten when
	// it is opened: some ten thousand writes, replayed in under a second.
	compactFrom = 8 << 20
)

// database is minidyn with a journal. Calls run one at a time, so that the
// journal has them in the order they took effect.
type database struct {
	log *slog.Logger

	mu      sync.Mutex
	client  *server.Client
	ops     map[string]operation
	tables  map[string]*server.CreateTableInput // by name; what each was created with
	journal *journal
	// broken is why nothing is answered any more: memory holds a write that the
	// journal does not, and nobody may see it.
	broken error
}

// operation is one call of the API. prepare decodes the body and returns what
// runs the call; its error means that nothing was begun.
type operation struct {
	writes  bool
	prepare func(body []byte) (func() (any, error), error)
}

func read[In, Out any](call func(context.Context, *In) (Out, error)) operation {
	return operation{prepare: func(body []byte) (func() (any, error), error) {
		in := new(In)
		if err := json.Unmarshal(body, in); err != nil {
			return nil, apiErrorf("SerializationException", "%v", err)
		}
		return func() (any, error) { return call(context.Background(), in) }, nil
	}}
}

func write[In, Out any](call func(context.Context, *In) (Out, error)) operation {
	op := read(call)
	op.writes = true
	return op
}

// openDatabase replays the journal in dir, which is made if missing.
func openDatabase(dir string, log *slog.Logger) (*database, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "journal")
	db := newDatabase(log)
	j, err := openJournal(path, db.replay)
	if err != nil {
		return nil, err
	}
	if j.size > compactFrom {
		if err := j.close(); err != nil {
			return nil, err
		}
		if err := replaceJournal(path, db.records); err != nil {
			return nil, fmt.Errorf("compacting %s: %w", path, err)
		}
		log.Info("journal of the tables compacted", "bytes", j.size)
		db = newDatabase(log)
		if j, err = openJournal(path, db.replay); err != nil {
			return nil, err
		}
	}
	db.journal = j
	return db, nil
}

func newDatabase(log *slog.Logger) *database {
	c := server.NewClient()
	db := &database{log: log, client: c, tables: make(map[string]*server.CreateTableInput)}
	db.ops = map[string]operation{
		"CreateTable":        write(db.createTable),
		"DeleteTable":        write(db.deleteTable),
		"DescribeTable":      read(db.describeTable),
		"ListTables":         read(db.listTables),
		"PutItem":            write(db.putItem),
		"UpdateItem":         write(db.updateItem),
		"DeleteItem":         write(c.DeleteItem),
		"BatchWriteItem":     write(c.BatchWriteItem),
		"TransactWriteItems": write(db.transactWriteItems),
		"GetItem":            read(c.GetItem),
		"Query":              read(c.Query),
		"Scan":               read(db.scan),
		"BatchGetItem":       read(c.BatchGetItem),
		"TransactGetItems":   read(c.TransactGetItems),
	}
	return db
}

// serve answers a DynamoDB request and passes on every other one.
func (db *database) serve(ctx fiber.Ctx) error {
	target := ctx.Get("X-Amz-Target")
	if target == "" {
		return ctx.Next()
	}
	var out any
	body, err := readBody(ctx)
	if err == nil {
		out, err = db.call(strings.TrimPrefix(target, targetPrefix), body)
	}
	status := 200
	if err != nil {
		status, out = errorAnswer(err)
	}
	encoded, err := encode(out)
	if err != nil {
		return fmt.Errorf("encoding the answer to %s: %w", target, err)
	}
	ctx.Set("Content-Type", "application/x-amz-json-1.0")
	ctx.Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(encoded)), 10))
	return ctx.Status(status).Send(encoded)
}

// readBody returns the body, or an error when it is over maxBody.
func readBody(ctx fiber.Ctx) ([]byte, error) {
	stream := ctx.Request().BodyStream()
	if stream == nil { // fasthttp has none for an empty body
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(stream, maxBody+1))
	if err != nil {
		return nil, apiErrorf("SerializationException", "reading the request: %v", err)
	}
	if len(body) > maxBody {
		return nil, apiErrorf(tooLarge, "a request has at most %d bytes", maxBody)
	}
	return body, nil
}

// encode is json.Marshal without the escapes that HTML needs.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// call runs one operation and returns its answer, ready to be encoded. A write
// is on the disk when it returns.
func (db *database) call(target string, body []byte) (any, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.broken != nil {
		return nil, db.broken
	}
	op, ok := db.ops[target]
	if !ok {
		return nil, apiErrorf("UnknownOperationException", "%s is not part of this cloud", target)
	}
	run, err := op.prepare(body)
	if err != nil {
		return nil, err
	}
	out, err := run()
	if op.writes && !refused(err) {
		rec := record{Target: target, Body: body, Failed: err != nil}
		if jerr := db.journal.append(rec); jerr != nil {
			db.log.Error("writing the journal of the tables failed: no more calls are answered", "err", jerr)
			db.broken = apiErrorf(internalError, "the journal cannot be written: %v", jerr)
			return nil, db.broken
		}
	}
	if err != nil {
		return nil, err
	}
	return answer(out), nil
}

// refused reports whether err is that of a condition that did not hold: then
// nothing has changed. Any other refused write is put into the journal.
func refused(err error) bool {
	var condition *ddbtypes.ConditionalCheckFailedException
	var transaction *ddbtypes.TransactionCanceledException
	return errors.As(err, &condition) || errors.As(err, &transaction)
}

// replay applies a record from the journal.
func (db *database) replay(rec record) error {
	op, ok := db.ops[rec.Target]
	if !ok || !op.writes {
		return fmt.Errorf("%q is not a write", rec.Target)
	}
	run, err := op.prepare(rec.Body)
	if err != nil {
		return err
	}
	if _, err := run(); (err != nil) != rec.Failed {
		return fmt.Errorf("%s did not end as it did the first time: error %v", rec.Target, err)
	}
	return nil
}

// records gives the fewest calls that make the tables what they are.
func (db *database) records(yield func(record) error) error {
	for _, name := range db.tableNames() {
		body, err := encode(db.tables[name])
		if err != nil {
			return err
		}
		if err := yield(record{Target: "CreateTable", Body: body}); err != nil {
			return err
		}
		scan, err := db.client.Scan(context.Background(), &server.ScanInput{TableName: &name})
		if err != nil {
			return err
		}
		for _, it := range scan.Items {
			body, err := encode(struct {
				TableName string
				Item      item
			}{name, itemOf(it)})
			if err != nil {
				return err
			}
			if err := yield(record{Target: "PutItem", Body: body}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (db *database) close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.journal.close()
}
