package web

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// certificateInterval is how often it is seen whether a certificate's files have changed.
	certificateInterval = 10 * time.Second
	// expiryWarning is how long before its end a certificate is warned of, once a day.
	expiryWarning, warnEvery = 14 * 24 * time.Hour, 24 * time.Hour
)

// Certificate is that of an HTTP side, from files that are read again when they change. A
// nil Certificate is none.
type Certificate struct {
	cert, key string // files
	newest    atomic.Pointer[tls.Certificate]
	read      [2]os.FileInfo // of Run, as they were read last
}

// OpenCertificate reads a certificate with what its chain needs, and its key, as PEM.
func OpenCertificate(certFile, keyFile string) (*Certificate, error) {
	c := &Certificate{cert: certFile, key: keyFile}
	return c, c.reread()
}

func (c *Certificate) reread() error {
	read, err := c.stat() // before: what changes meanwhile is read once more
	if err != nil {
		return fmt.Errorf("certificate of the HTTP side: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("certificate of the HTTP side (%s, %s): %w", c.cert, c.key, err)
	}
	c.newest.Store(&pair)
	c.read = read
	return nil
}

func (c *Certificate) stat() (files [2]os.FileInfo, err error) {
	for i, name := range []string{c.cert, c.key} {
		if files[i], err = os.Stat(name); err != nil {
			return files, err
		}
	}
	return files, nil
}

// Listener has what comes to l speak TLS with the certificate.
func (c *Certificate) Listener(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.newest.Load(), nil },
	})
}

// Run reads the files again whenever they have changed, until ctx ends, and warns before
// the certificate expires. What cannot be read changes nothing, and is said once.
func (c *Certificate) Run(ctx context.Context, logger *slog.Logger) error {
	if c == nil {
		return nil
	}
	return c.run(ctx, logger, certificateInterval)
}

func (c *Certificate) run(ctx context.Context, logger *slog.Logger, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var warned time.Time
	said := ""
	for {
		if leaf := c.newest.Load().Leaf; time.Until(leaf.NotAfter) < expiryWarning && time.Since(warned) > warnEvery {
			warned = time.Now()
			logger.Warn("the certificate of the HTTP side expires", "file", c.cert, "at", leaf.NotAfter)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		files, err := c.stat()
		if err == nil && unchanged(files[0], c.read[0]) && unchanged(files[1], c.read[1]) {
			continue
		}
		if err == nil {
			err = c.reread()
		}
		if err == nil {
			said, warned = "", time.Time{}
			logger.Info("certificate of the HTTP side changed", "file", c.cert, "expires", c.newest.Load().Leaf.NotAfter)
		} else if err.Error() != said {
			said = err.Error()
			logger.Error("certificate of the HTTP side not read again, the one of before holds", "error", err)
		}
	}
}

func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}
