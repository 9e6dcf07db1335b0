package operator

import "testing"

// FuzzList: a file of operators that is read means the same when it is written again.
func FuzzList(f *testing.F) {
	f.Add("# of the team\nci publish never sha256:47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU\n")
	f.Add("ann admin 2027-01-31T00:00:00Z sha256:47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseList(text)
		if err != nil {
			return
		}
		if len(list) > maxOperators {
			t.Errorf("%d operators", len(list))
		}
		for _, o := range list {
			if again, err := parseLine(o.line()); err != nil || again.Name != o.Name || again.Role != o.Role || again.hash != o.hash || !again.Expires.Equal(o.Expires) {
				t.Errorf("%+v is read as %+v, %v", o, again, err)
			}
		}
	})
}
