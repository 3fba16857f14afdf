"""The kubelet's plugin registration: messages in `registration_pb2`, clients in `registration_pb2_grpc`."""
