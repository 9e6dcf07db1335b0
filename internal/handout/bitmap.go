package handout

import "math/bits"

// bitmap is a set of pieces.
type bitmap []uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

// fullBitmap holds all pieces below n.
func fullBitmap(n int) bitmap {
	b := newBitmap(n)
	for i := range b {
		b[i] = ^uint64(0)
	}
	if n%64 != 0 {
		b[len(b)-1] = 1<<(n%64) - 1
	}
	return b
}

// wireBitmap reads a bitfield as BEP 3 has it, the first piece in the highest bit
// of the first byte. Bits from n on are spare and ignored.
func wireBitmap(field []byte, n int) bitmap {
	b := newBitmap(n)
	for i := range n {
		if field[i/8]&(0x80>>(i%8)) != 0 {
			b.set(i)
		}
	}
	return b
}

func (b bitmap) get(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i int)    { b[i/64] &^= 1 << (i % 64) }

// each calls f with every member in order.
func (b bitmap) each(f func(int)) {
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			f(w*64 + bits.TrailingZeros64(word))
		}
	}
}

// next returns the first member at or after from, -1 when there is none.
func (b bitmap) next(from int) int {
	for w := from / 64; w < len(b); w++ {
		word := b[w]
		if w == from/64 {
			word &= ^uint64(0) << (from % 64)
		}
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
	}
	return -1
}

// nextMissing returns the first piece at or after from that is no member; it may
// be beyond the last piece.
func (b bitmap) nextMissing(from int) int {
	for w := from / 64; w < len(b); w++ {
		word := ^b[w]
		if w == from/64 {
			word &= ^uint64(0) << (from % 64)
		}
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
	}
	return len(b) * 64
}

// covers reports whether all members of another one are members.
func (b bitmap) covers(o bitmap) bool {
	for w := range b {
		if o[w]&^b[w] != 0 {
			return false
		}
	}
	return true
}

// count is how many members there are.
func (b bitmap) count() (n int) {
	for _, word := range b {
		n += bits.OnesCount64(word)
	}
	return n
}
