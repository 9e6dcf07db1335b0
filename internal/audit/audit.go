// Package audit keeps the record of changes that were asked for over HTTP: who, what, from
// where, and what came of it. It is a file of JSON lines in the data directory to which is
// only added, of bounded size.
//
// Who may do something is decided elsewhere; here no request is refused, and none waits for
// the disk.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
)

const (
	// File is the newest part of the record; the older ones have a number behind it, from 1
	// on, the greatest being the oldest.
	File = "audit.jsonl"
	// MaxFile bounds a part in bytes, MaxFiles their number: beyond them the oldest goes.
	// 64 MiB are some 200,000 changes.
	MaxFile, MaxFiles = 8 << 20, 8
	// MaxRead bounds the records that Newest returns.
	MaxRead = 1000
	// maxText bounds what one text of a record has, in bytes: keys have up to 1,024.
	maxText = 1200
	// maxQueue bounds the records that are not written yet.
	maxQueue = 1024
	// refusedBurst and refusedEvery bound the records of those whom nobody knows, who could
	// push out all others: so many at once, then one each time. The rest is counted.
	refusedBurst, refusedEvery = 60, time.Second
)

// Log is the record of one data directory. A nil Log keeps none.
type Log struct {
	dir    string
	logger *slog.Logger
	queue  chan api.Change
	done   chan struct{}
	now    func() time.Time
	most   int64 // bytes of a part

	mu         sync.Mutex
	closed     bool
	tokens     float64 // of refusedBurst
	refilled   time.Time
	unrecorded int64
	lost       bool // is said until one is written
}

// Open begins to write to the record in dir. Call Close when nothing more comes.
func Open(dir string, logger *slog.Logger) (*Log, error) {
	f, err := openFile(filepath.Join(dir, File))
	if err != nil {
		return nil, fmt.Errorf("record of changes: %w", err)
	}
	l := &Log{dir: dir, logger: logger, queue: make(chan api.Change, maxQueue), done: make(chan struct{}), now: time.Now, most: MaxFile, tokens: refusedBurst}
	go l.write(f)
	return l, nil
}

// openFile opens a part to add to it. A line that a crash has cut short is ended.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	last := make([]byte, 1)
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		if _, err = f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.Write([]byte("\n"))
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close writes what is left.
func (l *Log) Close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	<-l.done
}

// Add takes a record in, and reports whether it is one of its own in the log, too: of those
// whom nobody knows only some are. It does not wait for the disk.
func (l *Log) Add(r api.Change, known bool) bool {
	if l == nil {
		return true
	}
	for _, text := range []*string{&r.Path, &r.Error, &r.From, &r.Operator, &r.Action} {
		*text = cut(*text)
	}
	for name, text := range r.About {
		r.About[name] = cut(text)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !known && !l.mayRecord() {
		l.unrecorded++
		return false
	}
	r.Unrecorded, l.unrecorded = l.unrecorded, 0
	if l.closed {
		return true
	}
	select {
	case l.queue <- r:
	default:
		if !l.lost {
			l.logger.Error("changes are not recorded, the disk is too slow")
		}
		l.lost = true
	}
	return true
}

// mayRecord takes one of the records of those whom nobody knows. The caller holds mu.
func (l *Log) mayRecord() bool {
	now := l.now()
	if !l.refilled.IsZero() {
		l.tokens = min(refusedBurst, l.tokens+float64(now.Sub(l.refilled))/float64(refusedEvery))
	}
	l.refilled = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return s[:maxText] + "…"
}

// write owns the files.
func (l *Log) write(f *os.File) {
	defer close(l.done)
	defer func() { f.Close() }()
	failing := false
	for r := range l.queue {
		next, err := l.append(f, r)
		f = next
		if err != nil && !failing {
			l.logger.Error("changes are not recorded", "error", err)
		}
		if failing = err != nil; !failing {
			l.mu.Lock()
			l.lost = false
			l.mu.Unlock()
		}
	}
}

// append writes a line, into the next file where this one is full, and returns the file.
func (l *Log) append(f *os.File, r api.Change) (*os.File, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return f, err
	}
	info, err := f.Stat()
	if err != nil {
		return f, err
	}
	if info.Size() > 0 && info.Size()+int64(len(line))+1 > l.most {
		if err := l.rotate(); err != nil {
			return f, err
		}
		next, err := openFile(filepath.Join(l.dir, File))
		if err != nil {
			return f, err
		}
		f.Close()
		f = next
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return f, err
	}
	return f, f.Sync()
}

// rotate makes room for a new part.
func (l *Log) rotate() error {
	for n := MaxFiles - 1; n > 0; n-- {
		if err := os.Rename(l.part(n-1), l.part(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// part is a file's name; that of 0 is the newest.
func (l *Log) part(n int) string {
	name := filepath.Join(l.dir, File)
	if n == 0 {
		return name
	}
	return fmt.Sprintf("%s.%d", name, n)
}

// Newest returns the newest records, the last first, at most MaxRead. A line that is none,
// as after a crash in its middle, is passed over.
func (l *Log) Newest(limit int) (records []api.Change, err error) {
	limit = min(limit, MaxRead)
	for n := 0; n < MaxFiles && len(records) < limit; n++ {
		text, err := os.ReadFile(l.part(n)) // of MaxFile bytes
		if errors.Is(err, fs.ErrNotExist) {
			continue // it becomes another part just now
		}
		if err != nil {
			return nil, fmt.Errorf("reading the record of changes: %w", err)
		}
		lines := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
		for _, line := range slices.Backward(lines) {
			var r api.Change
			if len(records) == limit {
				break
			}
			if json.Unmarshal(line, &r) == nil && r.Action != "" {
				records = append(records, r)
			}
		}
	}
	return records, nil
}
