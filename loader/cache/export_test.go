package cache

// BootAt is the offset of the boot's id in the file chunks.
const BootAt = bootAt
