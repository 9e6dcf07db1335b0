package devcloud

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/landfall-dist/landfall/internal/private"
)

// record is one call that may have changed a table: a line of the journal.
type record struct {
	// Target is the operation, such as PutItem.
	Target string `json:"target"`
	// Body is the request as it came.
	Body json.RawMessage `json:"body"`
	// Failed says that the call was answered with an error. minidyn can have
	// applied part of such a call; replaying it applies the same part.
	Failed bool `json:"failed,omitempty"`
}

// journal is a file of records, one a line, in the order they were applied.
type journal struct {
	file *os.File
	size int64
}

// openJournal opens or makes the file at path and gives its records to replay
// in order. A last line that is cut short or garbled is removed: its call was
// not answered, since append returns only when the line is on the disk.
func openJournal(path string, replay func(record) error) (*journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file}
	if err := j.replay(replay); err != nil {
		file.Close()
		return nil, fmt.Errorf("replaying %s: %w", path, err)
	}
	if err := errors.Join(file.Truncate(j.size), file.Sync(), private.SyncDir(filepath.Dir(path))); err != nil {
		file.Close()
		return nil, fmt.Errorf("preparing %s: %w", path, err)
	}
	return j, nil
}

// replay reads the file to its last whole record and leaves size there.
func (j *journal) replay(apply func(record) error) error {
	r := bufio.NewReader(j.file)
	for line := 1; ; line++ {
		text, err := r.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var rec record
		if err := json.Unmarshal(text, &rec); err != nil {
			if _, end := r.Peek(1); end == io.EOF {
				return nil
			}
			return fmt.Errorf("line %d: %w", line, err)
		}
		if err := apply(rec); err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
		j.size += int64(len(text))
	}
}

// append writes rec and returns when it is on the disk. After an error the
// journal must not be used any more: its end is unknown.
func (j *journal) append(rec record) error {
	line, err := rec.line()
	if err != nil {
		return err
	}
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		return err
	}
	j.size += int64(len(line))
	return j.file.Sync()
}

func (j *journal) close() error {
	return errors.Join(j.file.Sync(), j.file.Close())
}

// line encodes the record on one line, whatever line breaks its body had.
func (r record) line() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("encoding %s for the journal: %w", r.Target, err)
	}
	return b.Bytes(), nil
}

// replaceJournal writes the records to a new file and puts it in the place of
// the one at path, so that a crash leaves either the old or the new.
func replaceJournal(path string, records func(yield func(record) error) error) (err error) {
	file, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	w := bufio.NewWriter(file)
	write := func(r record) error {
		line, err := r.line()
		if err != nil {
			return err
		}
		_, err = w.Write(line)
		return err
	}
	if err := records(write); err != nil {
		return err
	}
	if err := errors.Join(w.Flush(), file.Sync()); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return private.SyncDir(filepath.Dir(path))
}
