package source

import (
	"context"
	"fmt"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// Pieces reads pieces of a segment, which begins at an offset of the object that it was
// pulled from, in the order given, runs of neighbours with one ranged GET of at most 4 MiB or one
// piece, and passes each to put. The object must have the ETag still:
// bucket.ErrChanged. The first error ends it.
func Pieces(ctx context.Context, from *bucket.Bucket, key, etag string, at int64, m *manifest.Manifest, pieces []int, put func(ctx context.Context, piece int, b []byte) error) error {
	most := int(max(1, blockLength/m.PieceLength))
	for len(pieces) > 0 {
		n := 1
		for n < len(pieces) && n < most && pieces[n] == pieces[0]+n {
			n++
		}
		if err := run(ctx, from, key, etag, at, m, pieces[:n], put); err != nil {
			return fmt.Errorf("reading pieces of %s from %s: %w", key, from.Name(), err)
		}
		pieces = pieces[n:]
	}
	return nil
}

// run reads neighbouring pieces.
func run(ctx context.Context, from *bucket.Bucket, key, etag string, at int64, m *manifest.Manifest, pieces []int, put func(context.Context, int, []byte) error) error {
	start, _ := m.PieceRange(pieces[0])
	offset, length := m.PieceRange(pieces[len(pieces)-1])
	b := &block{offset: at + start, buf: make([]byte, offset+length-start)}
	if err := readRange(ctx, from, &bucket.Object{Key: key, ETag: etag}, b, func() {}); err != nil {
		return err
	}
	for _, piece := range pieces {
		offset, length := m.PieceRange(piece)
		if err := put(ctx, piece, b.buf[offset-start:offset-start+length]); err != nil {
			return err
		}
	}
	return nil
}
