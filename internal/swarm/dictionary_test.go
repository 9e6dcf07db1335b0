package swarm

import (
	"crypto/sha1"
	"math/rand/v2"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

// Each peer's info dictionary is put together by itself, so that whoever sends wrong parts
// is known by them.
func TestInfoIsEachPeersOwn(t *testing.T) {
	const length = 2*infoPart + 7
	content := make([]byte, length)
	rand.NewChaCha8([32]byte{1}).Read(content)
	part := func(i int) []byte { return content[i*infoPart : min(length, (i+1)*infoPart)] }
	noise := make([]byte, infoPart)
	torrent := &Torrent{fetch: Fetch{InfoHash: manifest.InfoHash(sha1.Sum(content))}, infoLength: length}
	type sent struct {
		part, total int
		content     []byte
	}
	for name, c := range map[string]struct {
		sent  []sent
		wrong bool // the last of them
	}{
		"in any order":           {[]sent{{2, length, part(2)}, {0, length, part(0)}, {1, length, part(1)}}, false},
		"twice":                  {[]sent{{0, length, part(0)}, {0, length, part(0)}}, false},
		"not all":                {[]sent{{0, length, noise}, {1, length, part(1)}}, false},
		"one that is wrong":      {[]sent{{0, length, part(0)}, {1, length, noise}, {2, length, part(2)}}, true},
		"another length":         {[]sent{{0, length + 1, part(0)}}, true},
		"a short part":           {[]sent{{0, length, part(0)[1:]}}, true},
		"an empty part":          {[]sent{{0, length, nil}}, true},
		"a long last part":       {[]sent{{2, length, noise}}, true},
		"a part beyond the end":  {[]sent{{3, length, part(0)}}, true},
		"a part below the first": {[]sent{{-1, length, part(0)}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var x exchange
			for i, p := range c.sent {
				right := new(Swarm).takeInfo(torrent, &x, pp.ExtendedMetadataRequestMsg{Piece: p.part, TotalSize: p.total}, p.content)
				if wrong := i == len(c.sent)-1 && c.wrong; right == wrong {
					t.Errorf("part %d is right: %t", p.part, right)
				}
			}
			if cap(x.info.bytes) > length {
				t.Errorf("%d bytes are kept", cap(x.info.bytes))
			}
		})
	}
}

// A peer that offers a wrong info dictionary does not hold back who has the right one,
// though it is the first to be asked.
func TestWrongInfoHoldsNobodyBack(t *testing.T) {
	for _, behaviour := range []badpeer.Behaviour{badpeer.Length, badpeer.Info} {
		t.Run(string(behaviour), func(t *testing.T) {
			t.Parallel()
			const size = 1 << 20
			s, from, content, m := seed(t, size, nil)
			agent := start(t, "agent", t.TempDir(), nil)
			f := agent.fetch(t, from, size, nil)
			_, addr := bad(t, behaviour, "cuckoo", m)
			agent.untilNamed(t, f, addr)
			finish(t, f, content, s.addr, addr)
		})
	}
}
