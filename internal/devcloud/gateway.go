package devcloud

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/pkg/xattr"
	"github.com/valyala/fasthttp"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"
)

const (
	// maxConns bounds the connections served at a time; more wait in the
	// kernel's queue. A seeder and a handful of agents use a few hundred.
	maxConns = 1024
	// maxParts is S3's own limit on the parts of a multipart upload.
	maxParts = 10_000
	// maxCopySize is S3's own limit on the source of a CopyObject in bytes.
	// Without it versitygw refuses every copy.
	maxCopySize = 5 << 30
	// healthPath answers 200 to anyone, as the daemons' own does.
	healthPath = "/healthz"
	// idleTimeout ends a kept-alive connection that nobody uses.
	idleTimeout = 2 * time.Minute
)

// account is the one identity that S3 accepts.
type account struct{ key, secret, region string }

// gateway is versitygw over the files in a directory.
type gateway struct {
	http    *fasthttp.Server
	backend *posix.Posix
}

// openGateway serves the objects in dir/s3 and, for the requests it recognises,
// dynamo. It changes the working directory of the process.
func openGateway(dir string, acc account, dynamo fiber.Handler) (*gateway, error) {
	root := filepath.Join(dir, "s3")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	attributes, err := attributeStore(root, filepath.Join(dir, "s3-attributes"))
	if err != nil {
		return nil, err
	}
	backend, err := posix.New(root, partless{attributes}, posix.PosixOpts{CopyObjectThreshold: maxCopySize})
	if err != nil {
		return nil, err
	}
	api, err := s3api.New(
		files{backend},
		middlewares.RootUserConfig{Access: acc.key, Secret: acc.secret},
		acc.region,
		owner{auth.NewIAMServiceSingle(auth.Account{})},
		nil, nil, nil, nil, // no access logs, events or metrics
		s3api.WithQuiet(),
		s3api.WithKeepAlive(),
		s3api.WithHealth(healthPath),
		s3api.WithMpMaxParts(maxParts),
		s3api.WithConcurrencyLimiter(maxConns, maxConns),
		s3api.WithRoute("POST", "/", dynamo),
	)
	if err == nil {
		var app *fiber.App
		if app, err = appOf(api); err == nil {
			app.Handler() // for its side effect: the routes are built
			return &gateway{http: tune(app.Server()), backend: backend}, nil
		}
	}
	backend.Shutdown()
	return nil, err
}

func (g *gateway) close() { g.backend.Shutdown() }

// owner is the account service of a cloud with the root account only, which
// versitygw checks by itself.
type owner struct{ auth.IAMService }

// GetUserAccount knows no further account. versitygw's own service has another
// error for it, which clients would see as 404 rather than InvalidAccessKeyId.
func (owner) GetUserAccount(string) (auth.Account, error) { return auth.Account{}, auth.ErrNoSuchUser }

// appOf returns the fiber app inside api. versitygw keeps it private and offers
// only ServeMultiPort, which binds its port as late as it serves and leaves a
// goroutine behind for ten seconds (fasthttp's worker pool). Embedding it cleanly
// needs a listener and connections of our own.
func appOf(api *s3api.S3ApiServer) (*fiber.App, error) {
	field := reflect.ValueOf(api).Elem().FieldByName("app")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*fiber.App]() {
		return nil, errors.New("this version of versitygw keeps its fiber app elsewhere")
	}
	return (*fiber.App)(field.UnsafePointer()), nil
}

// tune sets what versitygw leaves open.
func tune(http *fasthttp.Server) *fasthttp.Server {
	http.IdleTimeout = idleTimeout
	// fasthttp takes the Date header from a goroutine that never ends, and lets
	// nobody else set it. The SDKs do without.
	http.NoDefaultDate = true
	answer := http.ErrorHandler
	http.ErrorHandler = func(ctx *fasthttp.RequestCtx, err error) {
		// The peer is gone, or we closed the connection: there is nobody to
		// answer, and versitygw would print it as an internal error.
		var lost *net.OpError
		if !errors.As(err, &lost) {
			answer(ctx, err)
		}
	}
	return http
}

// partless does without the list of an object's parts where that cannot be kept: many
// file systems have 4 KiB for all attributes of a file, some 1,000 parts. It is needed to
// read an object by part number, which nobody does here.
type partless struct{ meta.MetadataStorer }

func (p partless) StoreAttribute(f *os.File, bucket, object, attribute string, value []byte) error {
	err := p.MetadataStorer.StoreAttribute(f, bucket, object, attribute, value)
	if attribute == "mp-metadata" {
		return nil
	}
	return err
}

// attributeStore chooses where object attributes (ETags, checksums, metadata)
// live: with the files in root where the file system has extended attributes,
// else in files below sidecar. A directory that began with a sidecar keeps it.
func attributeStore(root, sidecar string) (meta.MetadataStorer, error) {
	_, err := os.Stat(sidecar)
	if errors.Is(err, fs.ErrNotExist) {
		if hasXattrs(root) {
			return meta.XattrMeta{}, nil
		}
		err = os.Mkdir(sidecar, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("object attributes: %w", err)
	}
	return meta.NewSideCar(sidecar)
}

// hasXattrs tries to set an extended attribute as versitygw will.
func hasXattrs(dir string) bool {
	const name = "user.landfall-probe"
	if !xattr.XATTR_SUPPORTED || xattr.Set(dir, name, []byte{1}) != nil {
		return false
	}
	return xattr.Remove(dir, name) == nil
}
