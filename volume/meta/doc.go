// Package meta keeps what a node must remember of a volume in one file: who it
// is and what it knows of its peers (Super), which extents may be mid-write
// (activity pages), and per peer which blocks its replica may lack (bitmap
// pages). docs/ONDISK.md is the byte-exact description.
package meta
