package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
)

// trips is how many round trips a ping-pong makes.
const trips = 100

// call makes one whole call of a kind and checks what comes back.
type call func(context.Context, *grpc.ClientConn, *[]byte) error

var kinds = map[string]call{"unary": unary, "stream": stream, "pingpong": pingPong}

func unary(ctx context.Context, conn *grpc.ClientConn, request *[]byte) error {
	var response []byte
	if err := conn.Invoke(ctx, "/bench.Echo/Unary", request, &response); err != nil {
		return err
	}
	return same(request, &response)
}

func stream(ctx context.Context, conn *grpc.ClientConn, request *[]byte) error {
	open, err := opened(ctx, conn, "/bench.Echo/Stream", false)
	if err != nil {
		return err
	}
	if err := open.SendMsg(request); err != nil {
		return err
	}
	if err := open.CloseSend(); err != nil {
		return err
	}
	for range copies {
		if err := received(open, request); err != nil {
			return err
		}
	}
	return ended(open)
}

func pingPong(ctx context.Context, conn *grpc.ClientConn, request *[]byte) error {
	open, err := opened(ctx, conn, "/bench.Echo/Chat", true)
	if err != nil {
		return err
	}
	for range trips {
		if err := open.SendMsg(request); err != nil {
			return err
		}
		if err := received(open, request); err != nil {
			return err
		}
	}
	if err := open.CloseSend(); err != nil {
		return err
	}
	return ended(open)
}

func opened(
	ctx context.Context, conn *grpc.ClientConn, method string, both bool,
) (grpc.ClientStream, error) {
	shape := grpc.StreamDesc{ServerStreams: true, ClientStreams: both}
	return conn.NewStream(ctx, &shape, method)
}

func received(open grpc.ClientStream, expected *[]byte) error {
	var message []byte
	if err := open.RecvMsg(&message); err != nil {
		return err
	}
	return same(expected, &message)
}

func ended(open grpc.ClientStream) error {
	var message []byte
	if err := open.RecvMsg(&message); !errors.Is(err, io.EOF) {
		return fmt.Errorf("expected the end of the stream, got %v", err)
	}
	return nil
}

func same(expected, got *[]byte) error {
	if len(*got) != len(*expected) {
		return fmt.Errorf("expected %d bytes, got %d", len(*expected), len(*got))
	}
	return nil
}
