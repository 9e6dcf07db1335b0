package command

import "github.com/landfall-dist/landfall/internal/size"

// ParseSize, ParseRate and FormatSize are package size's.
func ParseSize(s string) (int64, error) { return size.Parse(s) }

// ParseRate reads a rate such as 1Gbit or 50MB, in bytes/s.
func ParseRate(s string) (int64, error) { return size.ParseRate(s) }

// FormatSize writes bytes for people.
func FormatSize(n int64) string { return size.Format(n) }
