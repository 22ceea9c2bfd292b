package gcs

// SetFan makes trees of compositions high without many parts.
func (s *Store) SetFan(n int) { s.fan = n }
