"""RabbitMQ over AMQP 0-9-1. This package is the only importer of pika."""

from ppdl_mq.transport.rabbitmq.adapter import RabbitMQTransport

__all__ = ["RabbitMQTransport"]
