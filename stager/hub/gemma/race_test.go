//go:build race

package gemma

const raceEnabled = true
