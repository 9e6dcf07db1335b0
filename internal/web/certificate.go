package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/landfall-dist/landfall/internal/fresh"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// certificateInterval is how often it is seen whether a certificate's files have changed.
	certificateInterval = 10 * time.Second
	// expiryWarning is how long before its end a certificate is warned of, once a day.
	expiryWarning, warnEvery = 14 * 24 * time.Hour, 24 * time.Hour
	// maxCertificateFile bounds a file of a certificate or a key in bytes.
	maxCertificateFile = 256 << 10
)

// Certificate is that of an HTTP side. A nil Certificate is none.
type Certificate struct {
	newest func() *tls.Certificate
	file   string                         // of the certificate, for the log
	files  *fresh.Value[*tls.Certificate] // nil where somebody else looks after it
}

// OpenCertificate reads a certificate with what its chain needs, and its key, as PEM, from
// files that are read again when they change. The key's must be its owner's alone.
func OpenCertificate(certFile, keyFile string) (*Certificate, error) {
	files, err := fresh.Open(func() (*tls.Certificate, error) { return readCertificate(certFile, keyFile) }, certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate of the HTTP side: %w", err)
	}
	return &Certificate{newest: files.Load, file: certFile, files: files}, nil
}

// CertificateOf is one that somebody else keeps fresh: current is asked at each connection.
func CertificateOf(current func() *tls.Certificate) *Certificate {
	return &Certificate{newest: current}
}

func readCertificate(certFile, keyFile string) (*tls.Certificate, error) {
	key, err := private.Read(keyFile, maxCertificateFile)
	if err != nil {
		return nil, err
	}
	cert, err := readBounded(certFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", certFile, keyFile, err)
	}
	return &pair, nil
}

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCertificateFile+1))
	if err == nil && len(text) > maxCertificateFile {
		err = fmt.Errorf("%s: more than %d bytes", file, maxCertificateFile)
	}
	return text, err
}

// Listener has what comes to l speak TLS 1.3 with the certificate. Where clients returns
// authorities, a client is asked for a certificate of theirs; who it is, and whether that
// is to be believed, is for each request to find out, so that a refusal can be read.
func (c *Certificate) Listener(l net.Listener, clients func() *x509.CertPool) net.Listener {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.newest(), nil },
		// A session that is taken up again would keep the certificate of its beginning.
		SessionTicketsDisabled: true,
	}
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		authorities := clients()
		if authorities == nil {
			return config, nil
		}
		asking := config.Clone()
		asking.ClientAuth, asking.ClientCAs = tls.RequestClientCert, authorities
		return asking, nil
	}
	return tls.NewListener(l, config)
}

// Run reads the files again whenever they have changed, until ctx ends, and warns before
// the certificate expires. What cannot be read changes nothing, and is said once.
func (c *Certificate) Run(ctx context.Context, logger *slog.Logger) error {
	if c == nil || c.files == nil {
		return nil
	}
	return c.run(ctx, logger, certificateInterval)
}

func (c *Certificate) run(ctx context.Context, logger *slog.Logger, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var warned time.Time
	for {
		if leaf := c.newest().Leaf; time.Until(leaf.NotAfter) < expiryWarning && time.Since(warned) > warnEvery {
			warned = time.Now()
			logger.Warn("the certificate of the HTTP side expires", "file", c.file, "at", leaf.NotAfter)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if changed, err := c.files.Refresh(); err != nil {
			logger.Error("certificate of the HTTP side not read again, the one of before holds", "error", err)
		} else if changed {
			warned = time.Time{}
			logger.Info("certificate of the HTTP side changed", "file", c.file, "expires", c.newest().Leaf.NotAfter)
		}
	}
}
