package stager

// DirOf is where what belongs to one file is kept while it is staged.
var DirOf = dirOf
