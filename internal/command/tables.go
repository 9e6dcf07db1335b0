package command

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// knownTablesFile is in the data directory; maxKnownTables bounds it in bytes: names of
	// 255, and a global table's regions.
	knownTablesFile, maxKnownTables = "tables.json", 16 << 10
	// findTimeout bounds the look at a table without which this process can start.
	findTimeout = 10 * time.Second
)

// knownTables is what a seeder has found of its tables. It has that on its disk, and starts
// with it while they cannot be reached: hosts may have to go back all the same
// (--without-table).
type knownTables struct {
	// Table and Region are as the table of executions is asked for, Place is where it is.
	Table  string       `json:"table"`
	Region string       `json:"region"`
	Place  ledger.Place `json:"place"`
	// Arrivals is the table of arrivals; empty where there was none.
	Arrivals string `json:"arrivals,omitempty"`
}

// findTable looks for the table of executions.
func (m *Member) findTable(ctx context.Context, kind string) error {
	if kind == "seeder" {
		m.readKnown()
	}
	if m.known != nil {
		return m.findAgain(ctx, m.Ledger.Table(), m.Ledger.Check)
	}
	return m.Ledger.Check(ctx)
}

// FindArrivals looks for the table of arrivals, after that of executions, and has the next
// process know what was found. It is for a seeder.
func (m *Member) FindArrivals(ctx context.Context) (err error) {
	if m.known != nil && m.known.Arrivals == m.Arrivals.Name() {
		err = m.findAgain(ctx, m.Arrivals.Name(), m.Arrivals.Check)
	} else {
		err = m.Arrivals.Check(ctx)
	}
	if awserr.Unreached(err) || ctx.Err() != nil {
		return err
	}
	now := knownTables{Table: m.Ledger.Table(), Region: m.Ledger.Region(), Place: m.Ledger.Place()}
	if err == nil {
		now.Arrivals = m.Arrivals.Name()
	}
	text, errKept := json.Marshal(now)
	if errKept == nil {
		errKept = private.Replace(filepath.Join(m.DataDir, knownTablesFile), text)
	}
	if errKept != nil {
		m.Logger.Warn("what was found of the tables is not kept, the next start needs them", "error", errKept)
	}
	return err
}

// findAgain looks for a table that was there at an earlier start. It need not answer.
func (m *Member) findAgain(ctx context.Context, table string, check func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	err := check(bounded)
	if ctx.Err() != nil || !awserr.Unreached(err) {
		return err
	}
	m.Logger.Error("starting WITHOUT THE TABLE, which was there before: services can go back by --without-table, all else waits for it", "table", table, "error", err)
	return nil
}

// readKnown reads what was found of these tables before.
func (m *Member) readKnown() {
	text, err := private.Read(filepath.Join(m.DataDir, knownTablesFile), maxKnownTables)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var known knownTables
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	switch {
	case err != nil:
		m.Logger.Warn("what was found of the tables is not known any more, this start needs them", "error", err)
	case known.Table == m.Ledger.Table() && known.Region == m.Ledger.Region():
		m.known = &known
		m.Ledger.Expect(known.Place)
	}
}
