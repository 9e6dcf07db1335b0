package web

import (
	"net/http"

	"github.com/landfall-dist/landfall/internal/api"
	rates "github.com/landfall-dist/landfall/internal/limits"
)

// Limits serves GET /limits, and POST /limits, which changes them; not where refused is
// set, since everybody could.
func (m *Mux) Limits(l *rates.Limits, refused bool) {
	m.JSON("GET /limits", func(*http.Request) (int, any, error) { return http.StatusOK, l.Rates(), nil })
	m.JSON("POST /limits", func(r *http.Request) (int, any, error) {
		if refused {
			return 0, nil, Errorf(http.StatusForbidden,
				"limits are not changed: this listens beyond loopback and has no --operator-token, so everybody who reaches it could")
		}
		var change api.LimitsChange
		if err := Read(r, &change); err != nil {
			return 0, nil, err
		}
		if err := l.Change(change); err != nil {
			return 0, nil, &Error{Code: http.StatusBadRequest, Err: err}
		}
		m.logger.Info("limits changed", "bytesPerSecond", l, "by", "POST /limits", "from", r.RemoteAddr)
		return http.StatusOK, l.Rates(), nil
	})
}
