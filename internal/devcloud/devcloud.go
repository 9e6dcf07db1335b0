// Package devcloud is a small cloud for one machine: an S3 and a DynamoDB
// endpoint on one port, inside this process, keeping its data in a directory.
// It takes the place of AWS where Landfall is tried out and tested.
//
// S3 is versitygw over plain files: signatures, multipart uploads, checksums
// and conditional writes work as in AWS. DynamoDB is minidyn with a journal
// under it, so that what was answered is still there after a kill -9.
//
// # Known limits
//
// One Cloud to a process at a time: the process's working directory is Dir/s3
// from New until Run returns, because versitygw's file backend works relative
// to it. Callers make other paths absolute first.
//
// Keys are file paths: an object "a" excludes an object "a/b", and a key with
// ".." in it is refused. There is one account and one region. Answers have no
// Date header. versitygw prints its own internal errors to standard error.
//
// DynamoDB requests are not authenticated, so the port belongs on loopback.
// Served are CreateTable, DeleteTable, DescribeTable, ListTables, PutItem,
// GetItem, UpdateItem, DeleteItem, Query, Scan, BatchGetItem, BatchWriteItem,
// TransactGetItems and TransactWriteItems; anything else is an
// UnknownOperationException. Reads are always consistent. Numbers that an
// expression computes or compares are float64, exact up to 2^53. Not there:
// item size limits, the 1 MiB page limit, parallel scans, the parameters that
// expressions replaced (Expected, AttributeUpdates and the like), idempotency
// tokens, PutItem's ReturnValues, and the old item in the refusal of a PutItem
// or DeleteItem. minidyn joins partition and sort key with a dot, so that
// ("a", "b.c") and ("a.b", "c") are the same item. All items live in memory.
package devcloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/gofrs/flock"

	"github.com/landfall-dist/landfall/internal/private"
)

// ErrInUse is wrapped by the error of New when another Cloud, in this process
// or another, has the directory.
var ErrInUse = errors.New("directory is in use by another process")

// Config says where a Cloud listens and keeps its data. Only Dir is required.
type Config struct {
	// Listen is host:port, by default 127.0.0.1:4566. Port 0 picks a free one.
	Listen string
	// Dir holds everything, in s3 and dynamodb below it. It is made if missing;
	// a relative one is taken from the working directory at the time of New.
	Dir string
	// AccessKey and SecretKey, both "test" by default, are the one account.
	AccessKey, SecretKey string
	// Region, "us-east-1" by default, is what S3 signatures must name.
	Region string
	// Logger may be nil: then nothing is logged.
	Logger *slog.Logger
}

// Cloud is a running S3 and DynamoDB endpoint; see New.
type Cloud struct {
	log    *slog.Logger
	lock   *flock.Flock
	cwd    string
	ln     net.Listener
	db     *database
	s3     *gateway
	server *httpServer
}

// New opens the directory, replays the journal and binds the port, so that
// connections queue up until Run serves them. A directory in use (ErrInUse) and
// a taken port are errors. After a nil error the caller must call Run, if only
// with an ended context, to release what New took.
func New(cfg Config) (_ *Cloud, err error) {
	cfg.Listen = cmp.Or(cfg.Listen, "127.0.0.1:4566")
	cfg.AccessKey = cmp.Or(cfg.AccessKey, "test")
	cfg.SecretKey = cmp.Or(cfg.SecretKey, "test")
	cfg.Region = cmp.Or(cfg.Region, "us-east-1")
	if cfg.Dir == "" {
		return nil, errors.New("devcloud: no directory given")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("finding the directory %s: %w", cfg.Dir, err)
	}
	c := &Cloud{log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()

	if err := private.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("making the cloud's directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	case !locked:
		return nil, fmt.Errorf("locking %s: %w", dir, ErrInUse)
	}
	c.lock = lock
	if err := private.Tighten(dir, "*"); err != nil {
		return nil, err
	}
	if c.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("opening the port for S3 and DynamoDB: %w", err)
	}
	if c.db, err = openDatabase(filepath.Join(dir, "dynamodb"), c.log); err != nil {
		return nil, fmt.Errorf("opening the tables in %s: %w", dir, err)
	}
	if c.cwd, err = os.Getwd(); err != nil {
		return nil, fmt.Errorf("finding the working directory: %w", err)
	}
	c.s3, err = openGateway(dir, account{key: cfg.AccessKey, secret: cfg.SecretKey, region: cfg.Region}, c.db.serve)
	if err != nil {
		return nil, fmt.Errorf("opening the objects in %s: %w", dir, err)
	}
	c.server = newHTTPServer(c.s3.http)
	return c, nil
}

// URL is the endpoint of both services, such as http://127.0.0.1:4566. When
// every address is listened on, it names the loopback one.
func (c *Cloud) URL() string {
	addr := c.ln.Addr().(*net.TCPAddr)
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
}

// Run serves until ctx ends, then gives requests in flight a few seconds to
// finish and closes everything. It returns nil on such an end. It can be called
// once.
func (c *Cloud) Run(ctx context.Context) error {
	c.log.Info("local cloud is serving", "url", c.URL())
	return errors.Join(c.server.serve(ctx, c.ln), c.close())
}

// close releases whatever New has got hold of, last thing first.
func (c *Cloud) close() error {
	var errs []error
	if c.s3 != nil {
		c.s3.close()
	}
	if c.cwd != "" {
		errs = append(errs, os.Chdir(c.cwd))
	}
	if c.db != nil {
		errs = append(errs, c.db.close())
	}
	if c.ln != nil {
		if err := c.ln.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
	}
	return errors.Join(errs...)
}
