package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"google.golang.org/grpc"
)

// copies is how many messages a server stream answers with.
const copies = 100

// serve answers every method until it is killed: one ending in /Stream with many
// copies of its request, any other by echoing each message.
func serve(announce io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(raw{}),
		grpc.UnknownServiceHandler(answer),
		grpc.MaxConcurrentStreams(1<<20),
	)
	fmt.Fprintln(announce, listener.Addr().(*net.TCPAddr).Port)
	return server.Serve(listener)
}

func answer(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	times := 1
	if strings.HasSuffix(method, "/Stream") {
		times = copies
	}
	for {
		var message []byte
		if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for range times {
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
		}
	}
}
