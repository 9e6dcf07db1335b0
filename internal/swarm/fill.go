package swarm

// maxStretches bounds how finely Fill says what somebody has.
const maxStretches = 400

// Holder is a connected peer, and what it has.
type Holder struct {
	ID   [20]byte
	Fill string
}

// Fill says how much of a build is here and at each connected peer: a digit for each
// of at most 400 equal stretches of whole pieces, from 0 for nothing to 9 for all of
// it. Empty before the info dictionary is here.
func (t *Torrent) Fill() (here string, peers []Holder) {
	e := t.entryNow()
	if e == nil {
		return "", nil
	}
	pieces := e.Shape().NumPieces()
	count := func(each func(yield func(piece int))) string {
		has := make([]int, min(maxStretches, pieces))
		each(func(piece int) { has[piece*len(has)/pieces]++ })
		return digits(has, pieces)
	}
	whole := e.Whole() // and may be cold
	here = count(func(yield func(int)) {
		for i := range pieces {
			if whole || e.Complete(i) {
				yield(i)
			}
		}
	})
	for _, c := range t.conns() {
		held := c.PeerPieces()
		peers = append(peers, Holder{c.PeerID, count(func(yield func(int)) {
			for _, i := range held.ToArray() {
				if int(i) < pieces { // a peer can say anything
					yield(int(i))
				}
			}
		})})
	}
	return here, peers
}

// digits makes a digit of each count. Only a stretch without a piece is 0, and only
// a full one 9.
func digits(has []int, pieces int) string {
	out := make([]byte, len(has))
	for i, n := range has {
		first := (i*pieces + len(has) - 1) / len(has)
		end := ((i+1)*pieces + len(has) - 1) / len(has)
		switch size := end - first; n {
		case 0:
			out[i] = '0'
		case size:
			out[i] = '9'
		default:
			out[i] = byte('1' + 8*n/size)
		}
	}
	return string(out)
}
