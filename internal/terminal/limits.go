package terminal

import (
	"fmt"
	"io"
	"strings"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
)

// directions are a daemon's limits, by what they are for.
func directions(l *api.Limits) (names []string, rates []int64) {
	names, rates = []string{"upload", "download", "source"}, []int64{l.UploadRate, l.DownloadRate, l.SourceRate}
	if l.LandingRate != nil {
		names, rates = append(names, "landing"), append(rates, *l.LandingRate)
	}
	return names, rates
}

// Limits prints how fast bytes may pass at a daemon.
func Limits(w io.Writer, l *api.Limits) error {
	var rows [][]string
	names, rates := directions(l)
	for i, name := range names {
		rate := "none"
		if rates[i] > 0 {
			rate = command.FormatSize(rates[i]) + "/s"
		}
		rows = append(rows, []string{name, rate})
	}
	return table(w, []column{{head: "DIRECTION"}, {head: "LIMIT"}}, rows)
}

// limited says which limits there are; empty for none.
func limited(l *api.Limits) string {
	var said []string
	names, rates := directions(l)
	for i, name := range names {
		if rates[i] > 0 {
			said = append(said, name+" "+command.FormatSize(rates[i])+"/s")
		}
	}
	if len(said) == 0 {
		return ""
	}
	return fmt.Sprintf("limited: %s", strings.Join(said, ", "))
}
