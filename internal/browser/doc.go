// Package browser has no code of its own: its tests look at the pages of seeder and
// agent with Chromium, as a person would, while builds are distributed by the real
// programs. They leave screenshots of every state in bin/screenshots.
//
// Where there is no Chromium they are skipped, but in CI.
package browser
