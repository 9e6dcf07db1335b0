package hostwire

import (
	"fmt"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// maxRecipes bounds the builds of which one stream tells piecemeal at a time.
const maxRecipes = 64

// recipes are those of which more is to come, by executionId.
type recipes map[string]*Recipe

// add puts a message together with what came before, and returns the whole so far.
func (r *recipes) add(m *Recipe) (*Recipe, error) {
	if m.Unknown() != nil {
		delete(*r, m.ExecutionID)
		return &Recipe{ExecutionID: m.ExecutionID, Key: m.Key, Size: m.Size, Scheme: m.Scheme}, nil
	}
	before := (*r)[m.ExecutionID]
	if m.From > 0 {
		switch {
		case before == nil || before.InfoHashes.Len() != m.From:
			return nil, fmt.Errorf("%w: segments from %d on of build %s, those before were not told", ErrInvalid, m.From, m.ExecutionID)
		case before.Size != m.Size || before.Scheme != m.Scheme || before.Key != m.Key:
			return nil, fmt.Errorf("%w: build %s is another one than before", ErrInvalid, m.ExecutionID)
		}
		whole := *m
		whole.From = 0
		whole.InfoHashes = append(before.InfoHashes[:len(before.InfoHashes):len(before.InfoHashes)], m.InfoHashes...)
		m = &whole
	}
	switch {
	case m.Sealed:
		delete(*r, m.ExecutionID)
		return m, nil
	case before == nil && len(*r) >= maxRecipes:
		return nil, fmt.Errorf("%w: more than %d builds are told of piecemeal", ErrInvalid, maxRecipes)
	}
	if *r == nil {
		*r = make(recipes)
	}
	(*r)[m.ExecutionID] = m
	return m, nil
}

// More is what a recipe says more than an earlier one of the same build, as a message; nil
// for nothing.
func (r *Recipe) More(before *Recipe) *Recipe {
	told := before.InfoHashes.Len()
	if r.InfoHashes.Len() <= told && r.Sealed == before.Sealed {
		return nil
	}
	more := *r
	more.From = told
	more.InfoHashes = r.InfoHashes[told*len(manifest.InfoHash{}):]
	return &more
}
