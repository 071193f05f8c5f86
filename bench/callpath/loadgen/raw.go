package main

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// raw passes messages as the bytes they are: *[]byte in, *[]byte out.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) (mem.BufferSlice, error) {
	bytes, ok := message.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("expected *[]byte, got %T", message)
	}
	return mem.BufferSlice{mem.SliceBuffer(*bytes)}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, into any) error {
	bytes, ok := into.(*[]byte)
	if !ok {
		return fmt.Errorf("expected *[]byte, got %T", into)
	}
	*bytes = data.Materialize()
	return nil
}
