package bucket

// getObject answers GetObject: what is known about an object.
func (c *call) getObject(m message) error {
	rd, err := c.openObject(m, 4, 8, m.number(3), "")
	if err != nil {
		return err
	}
	defer rd.close()
	return c.reply(rd.wire(c.log.Bucket))
}

// listObjects answers ListObjects. All fields of the objects come, whatever the request's mask wants.
func (c *call) listObjects(m message) error {
	rt, err := c.begin(m.text(1), "", 0, "")
	if err != nil {
		return err
	}
	for what, asked := range map[string]bool{"matchGlob": m.text(14) != "", "filter": m.text(15) != "", "includeFoldersAsPrefixes": m.flag(13)} {
		if asked {
			return errUnsupported(what)
		}
	}
	if m.number(2) < 0 {
		return errInvalid("Invalid page size: %d", m.number(2))
	}
	q := listQuery{
		Limit: pageSize(m.number(2)), Delimiter: m.text(4), IncludeTrailingDelimiter: m.flag(5), Prefix: m.text(6),
		Versions: m.flag(7), Start: m.text(10), End: m.text(11), SoftDeleted: m.flag(12),
	}
	if q.Versions && q.SoftDeleted {
		return errInvalid("versions and soft_deleted cannot both be set.")
	}
	if err := q.resume(m.text(3)); err != nil {
		return err
	}
	page, err := c.server.listBucket(rt.bucket, q)
	if err != nil {
		return err
	}
	var w wire
	for _, o := range page.Objects {
		w = w.message(1, o.wire(rt.bucket))
	}
	for _, prefix := range page.Prefixes {
		w = w.text(2, prefix)
	}
	return c.reply(w.text(3, page.Next))
}

// getBucket answers GetBucket.
func (c *call) getBucket(m message) error {
	rt, err := c.begin(m.text(1), "", 0, "")
	if err != nil {
		return err
	}
	w, err := c.server.bucketWire(rt.bucket, conditions{Metageneration: m.optional(2), MetagenerationNot: m.optional(3)})
	if err != nil {
		return err
	}
	return c.reply(w)
}

func (s *Server) bucketWire(name string, cond conditions) (wire, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, err := s.lookup(name)
	if err != nil {
		return nil, err
	}
	if err := cond.forRead(&object{Metageneration: b.Metageneration}); err != nil {
		return nil, err
	}
	return b.wire(), nil
}

// wire returns the service's Bucket.
func (b *bucket) wire() wire {
	w := wire(nil).text(1, "projects/_/buckets/"+b.Name).text(2, b.Name).text(29, etag(0, b.Metageneration)).
		text(3, "projects/0").number(4, b.Metageneration).text(5, b.Location).text(6, "multi-region").text(7, b.StorageClass).
		time(11, b.Created).time(13, b.Updated).flag(14, b.DefaultHold).entries(15, b.Labels)
	if b.Versioning {
		w = w.message(17, wire(nil).flag(1, true))
	}
	return w.message(23, wire(nil).message(1, wire(nil).flag(1, true))) // uniform bucket-level access
}

// checksums returns the service's ObjectChecksums.
func (o *object) checksums() wire { return wire(nil).sum(1, o.CRC32C).bytes(2, o.MD5) }

// wire returns the service's Object.
func (o *object) wire(bucket string) wire {
	a := &o.Attributes
	w := wire(nil).text(1, o.Name).text(2, "projects/_/buckets/"+bucket).text(27, etag(o.numbers())).
		number(3, o.Generation).number(4, o.Metageneration).text(5, a.StorageClass).number(6, o.Size).
		text(7, a.ContentEncoding).text(8, a.ContentDisposition).text(9, a.CacheControl).text(11, a.ContentLanguage).text(13, a.ContentType).
		time(12, o.Deleted).time(14, o.Created).time(17, o.Updated).time(19, o.Created).time(36, o.Created).
		number(15, int64(o.Components)).message(16, o.checksums()).flag(20, a.TemporaryHold).entries(22, a.Metadata)
	if a.EventBasedHold {
		w = w.flag(23, true)
	}
	return w.time(26, a.customTime()).time(28, o.SoftDeleted).time(29, o.HardDelete)
}
