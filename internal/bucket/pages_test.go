package bucket

import (
	"fmt"
	"testing"
)

// A store that never ends a listing is found out, whatever it says about how to go on.
func TestListingsWithoutEnd(t *testing.T) {
	for name, c := range map[string]struct {
		token   func(page int) string
		entries int
		most    int
	}{
		"nowhere":          {func(int) string { return "" }, 1000, 1},
		"the same place":   {func(int) string { return "t" }, 1000, 2},
		"a circle of five": {func(page int) string { return fmt.Sprint(page % 5) }, 1000, 20},
		"empty pages":      {func(page int) string { return fmt.Sprint(page) }, 0, maxEmptyPages + 1},
		"full pages":       {func(page int) string { return fmt.Sprint(page) }, 1000, maxPages},
	} {
		t.Run(name, func(t *testing.T) {
			var so pages
			for page := range c.most {
				if so.next(c.token(page), c.entries) != nil {
					return
				}
			}
			t.Errorf("not refused after %d pages", c.most)
		})
	}
}

func TestLongListing(t *testing.T) {
	var so pages
	for page := range maxPages - 1 {
		if err := so.next(fmt.Sprint(page), page%maxEmptyPages); err != nil {
			t.Fatalf("page %d: %v", page, err)
		}
	}
}
