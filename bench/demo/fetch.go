package demo

import "context"

// byFetch fills a directory, as an init container does, and starts the readers when it is complete.
func (d *demo) byFetch(ctx context.Context) error {
	dir := d.place.cache
	if err := d.fetch(ctx, dir); err != nil {
		return err
	}
	// A server on this road cannot begin before: all of the load is lost time.
	d.result.Stall = d.result.Load
	if err := d.readFirst(ctx, dir); err != nil {
		return err
	}
	return d.readSecond(ctx, dir)
}

func (d *demo) fetch(ctx context.Context, dir string) error {
	begin := d.now()
	var r struct {
		Bytes   int64   `json:"bytes"`
		Seconds float64 `json:"seconds"`
	}
	if err := d.command(ctx, &r, "fetch", d.repo.Name(), dir, "--json"); err != nil {
		return err
	}
	d.result.Load, d.result.LoadRate = round(r.Seconds), rate(r.Bytes, r.Seconds)
	d.span("fetch", begin, d.now())
	return nil
}
