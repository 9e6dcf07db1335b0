package seeder

import (
	"math/rand/v2"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
)

const (
	// firstUnread and maxUnread bound the wait before an object that could not be taken
	// up is tried again; it doubles, with jitter. Such an object is nearly always one
	// whose permissions, key or storage class a person has to mend.
	firstUnread, maxUnread = time.Second, 10 * time.Minute
	// maxUnreadTable bounds it where the table did not take the execution: that passes.
	maxUnreadTable = 30 * time.Second
)

// unread are the objects that could not be taken up, by key; bounded by maxNamed. One
// beyond is tried again at every poll.
type unread map[string]*unreadObject

type unreadObject struct {
	// etag and modified say which object it is.
	etag     string
	modified time.Time
	wait     time.Duration
	until    time.Time
	// listed is set by each listing that has the object.
	listed bool
}

// waits reports whether it is too early to try the object again.
func (u unread) waits(o bucket.Object, now time.Time) bool {
	e := u[o.Key]
	if e == nil {
		return false
	}
	if e.etag != o.ETag || !e.modified.Equal(o.LastModified) {
		delete(u, o.Key) // another object
		return false
	}
	e.listed = true
	return now.Before(e.until)
}

// failed notes that the object could not be taken up, and reports whether that is
// news.
func (u unread) failed(o bucket.Object, now time.Time, most time.Duration) (news bool) {
	e := u[o.Key]
	if e == nil {
		if len(u) >= maxNamed {
			return false
		}
		e = &unreadObject{etag: o.ETag, modified: o.LastModified, wait: firstUnread}
		u[o.Key], news = e, true
	}
	e.listed = true
	e.until = now.Add(e.wait/2 + rand.N(e.wait))
	e.wait = min(2*e.wait, most)
	return news
}

// listed ends a listing: what it did not have is forgotten.
func (u unread) listed() {
	for key, e := range u {
		if !e.listed {
			delete(u, key)
		}
		e.listed = false
	}
}

// notTaken says once why an object was not taken up; most bounds the wait before it is
// tried again.
func (w *watcher) notTaken(o bucket.Object, most time.Duration, err error) {
	w.metrics.unreadFailures.Inc()
	if w.unread.failed(o, time.Now(), most) {
		w.cfg.Logger.Error("no execution could be begun for the object; it is tried again at growing intervals", "key", o.Key, "error", err)
	}
	w.metrics.unread.Set(float64(len(w.unread)))
}
