package landing

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// maxNotesAge is how long the notes of an upload are kept that nobody has gone on with:
// as long as its announcement holds.
const maxNotesAge = 7 * 24 * time.Hour

// Notes remember on disk which parts a store has taken, with their ETags, for one whose
// ListParts does not say the parts' SHA-256: else all would be sent again after a restart.
// Each upload has a file, to which a line is appended for each part, in one write: so those
// who write at the same time need no lock. A line that is lost costs one part. It is safe for
// concurrent use, by one process.
type Notes struct {
	dir string
}

// OpenNotes keeps notes in a directory, which is made; notes that are too old are
// removed.
func OpenNotes(dir string) (*Notes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keeping notes of parts: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("keeping notes of parts: %w", err)
	}
	for _, f := range files {
		if stat, err := f.Info(); err == nil && time.Since(stat.ModTime()) > maxNotesAge {
			_ = os.Remove(filepath.Join(dir, f.Name())) // tried again at the next start
		}
	}
	return &Notes{dir: dir}, nil
}

// note is one line.
type note struct {
	Part int    `json:"part"`
	ETag string `json:"etag"`
	// SHA256 is the digest that the part was sent with.
	SHA256 []byte `json:"sha256"`
}

// file is that of an upload, whose id can be as long as a store likes.
func (n *Notes) file(uploadID string) string {
	sum := sha256.Sum256([]byte(uploadID))
	return filepath.Join(n.dir, hex.EncodeToString(sum[:]))
}

// sent takes note of a part that the store has taken.
func (n *Notes) sent(uploadID string, part int, etag string, sum []byte) (err error) {
	line, err := json.Marshal(note{part, etag, sum})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(n.file(uploadID), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// of returns what was noted of an upload, by part; what cannot be read is left out.
func (n *Notes) of(uploadID string) map[int]note {
	b, err := os.ReadFile(n.file(uploadID))
	if err != nil {
		return nil
	}
	notes := make(map[int]note)
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() && len(notes) < manifest.MaxParts {
		var one note
		if json.Unmarshal(lines.Bytes(), &one) == nil && one.ETag != "" {
			notes[one.Part] = one
		}
	}
	return notes
}

// forget removes what was noted of an upload that is over.
func (n *Notes) forget(uploadID string) error {
	if err := os.Remove(n.file(uploadID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
