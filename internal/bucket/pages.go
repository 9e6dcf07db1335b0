package bucket

import (
	"errors"
	"fmt"
)

const (
	// maxPages bounds the pages of one listing: 100 million keys of 1,000 a page,
	// which take hours to list.
	maxPages = 100_000
	// maxEmptyPages bounds those in a row that hold nothing. S3 sends a few where
	// much was deleted.
	maxEmptyPages = 1000
	// maxUploads bounds the unfinished uploads of one key. Landfall leaves one for
	// each agent and execution at most.
	maxUploads = 10_000
)

// pages watches over a listing, which a store may never end.
type pages struct {
	n, empty int
	mark     string
}

// next takes note of a page with so many entries, after which the listing goes on at
// a token.
func (p *pages) next(token string, entries int) error {
	p.n++
	p.empty++
	if entries > 0 {
		p.empty = 0
	}
	switch {
	case token == "" || token == "\x00":
		return errors.New("the answer is cut short and does not say how to go on")
	case token == p.mark:
		return errors.New("the answer goes on where it has been before")
	case p.empty > maxEmptyPages:
		return fmt.Errorf("the answer goes on, but the last %d pages were empty", maxEmptyPages)
	case p.n >= maxPages:
		return fmt.Errorf("the answer goes on after %d pages", maxPages)
	}
	if p.n&(p.n-1) == 0 { // a circle of any length comes to such a mark (Brent)
		p.mark = token
	}
	return nil
}
