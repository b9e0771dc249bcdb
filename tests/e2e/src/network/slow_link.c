/* slow_link FIRST SECOND DELAY_MS LOSS_PERCENT
 *
 * Makes two TUN devices and carries packets between them, each DELAY_MS later, except those that are lost. C, because a TUN
 * device is made by an ioctl and this workspace has no unsafe code. Says "ready", and runs until both devices are gone. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_BYTES_MAX = 2048, QUEUE_PACKETS_MAX = 4096 };

struct packet {
    int64_t due_us;
    int length;
    char bytes[PACKET_BYTES_MAX];
};

/* Packets on their way in one direction; what does not fit is dropped, as at a router. */
struct queue {
    struct packet *packets;
    unsigned first, count;
};

static int64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int device(const char *name) {
    struct ifreq request = {0};
    int file = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (file < 0 || ioctl(file, TUNSETIFF, &request) < 0) {
        perror(name);
        exit(1);
    }
    return file;
}

/* xorshift64: the same losses in every run, as far as packets come in the same order. */
static int is_lost(int percent) {
    static uint64_t state = 0x9e3779b97f4a7c15u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int)(state % 100) < percent;
}

/* Whether the device is still there. One that is down (EIO) only waits to be configured. */
static int take_in(int file, struct queue *queue, int64_t delay_us, int loss_percent) {
    char bytes[PACKET_BYTES_MAX];
    ssize_t length;
    while ((length = read(file, bytes, sizeof bytes)) > 0) {
        if (queue->count == QUEUE_PACKETS_MAX || is_lost(loss_percent))
            continue;
        struct packet *packet = &queue->packets[(queue->first + queue->count++) % QUEUE_PACKETS_MAX];
        packet->due_us = now_us() + delay_us;
        packet->length = (int)length;
        memcpy(packet->bytes, bytes, (size_t)length);
    }
    return errno == EAGAIN || errno == EIO || errno == EINTR;
}

static void hand_out(int file, struct queue *queue) {
    while (queue->count > 0 && queue->packets[queue->first].due_us <= now_us()) {
        struct packet *packet = &queue->packets[queue->first];
        if (write(file, packet->bytes, (size_t)packet->length) < 0) {
            /* A device that is down loses what it is given, as a cable does. */
        }
        queue->first = (queue->first + 1) % QUEUE_PACKETS_MAX;
        queue->count--;
    }
}

int main(int count, char **arguments) {
    if (count != 5)
        return 2;
    int files[2] = {device(arguments[1]), device(arguments[2])};
    int64_t delay_us = atoi(arguments[3]) * 1000;
    int loss_percent = atoi(arguments[4]);
    struct queue queues[2] = {{calloc(QUEUE_PACKETS_MAX, sizeof(struct packet)), 0, 0},
                              {calloc(QUEUE_PACKETS_MAX, sizeof(struct packet)), 0, 0}};
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd waiting[2] = {{files[0], POLLIN, 0}, {files[1], POLLIN, 0}};
        int is_busy = queues[0].count + queues[1].count > 0;
        poll(waiting, 2, is_busy ? 1 : 20);
        if (!take_in(files[0], &queues[0], delay_us, loss_percent) || !take_in(files[1], &queues[1], delay_us, loss_percent))
            return 0;
        hand_out(files[1], &queues[0]);
        hand_out(files[0], &queues[1]);
    }
}
