import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.UUID;
import javax.jms.BytesMessage;
import javax.jms.DeliveryMode;
import javax.jms.JMSException;
import javax.jms.Message;
import javax.jms.MessageProducer;
import javax.jms.Session;
import javax.jms.TextMessage;
import javax.jms.Topic;
import org.apache.activemq.ActiveMQConnection;
import org.apache.activemq.ActiveMQConnectionFactory;
import org.apache.activemq.command.ActiveMQTopic;

/**
 * A Personium unit's side of ActiveMQ: sends and receives as personium-core does.
 *
 * <p>It reads commands from standard input and writes replies to standard output, one per line, with
 * fields separated by spaces. TEXT and CELL are base64 of UTF-16BE, which can encode each Java string,
 * also with lone surrogates.
 *
 * <pre>
 *   subscribe TOPIC              subscribed TOPIC, then message ... for each
 *   send TOPIC CELL TEXT         sent
 *   bytes TOPIC TEXT             sent (a BytesMessage of the text in UTF-8)
 *   odd TOPIC CELL TEXT          sent (with a correlation id that holds a NUL)
 *   many TOPIC CELL COUNT        sent (texts {"number":0} ... without a pause)
 *   topics                       topics NAME... (all topics of the broker except advisories)
 * </pre>
 */
public final class Peer {
    private static final long TIME_TO_LIVE = 3600_000;
    private static final PrintStream out =
            new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);

    private final ActiveMQConnection connection;
    private final Session sending;
    private final MessageProducer producer;

    private Peer(String url) throws JMSException {
        connection = (ActiveMQConnection) new ActiveMQConnectionFactory(url).createConnection();
        connection.start();
        connection.getDestinationSource();
        sending = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
        producer = sending.createProducer(null);
        producer.setDeliveryMode(DeliveryMode.NON_PERSISTENT);
        producer.setTimeToLive(TIME_TO_LIVE);
    }

    public static void main(String[] arguments) throws Exception {
        Peer peer = new Peer(arguments[0]);
        out.println("ready");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            peer.perform(line.split(" "));
        }
        peer.connection.close();
    }

    private void perform(String[] words) throws Exception {
        switch (words[0]) {
            case "subscribe":
                subscribe(words[1]);
                out.println("subscribed " + words[1]);
                break;
            case "send":
                send(words[1], decode(words[2]), decode(words.length > 3 ? words[3] : ""), null);
                out.println("sent");
                break;
            case "odd":
                send(words[1], decode(words[2]), decode(words[3]), "a\0b\n:");
                out.println("sent");
                break;
            case "bytes":
                BytesMessage message = sending.createBytesMessage();
                message.writeBytes(decode(words[2]).getBytes(StandardCharsets.UTF_8));
                producer.send(new ActiveMQTopic(words[1]), message);
                out.println("sent");
                break;
            case "many":
                for (int number = 0; number < Integer.parseInt(words[3]); number++) {
                    send(words[1], decode(words[2]), "{\"number\":" + number + "}", null);
                }
                out.println("sent");
                break;
            case "topics":
                StringBuilder names = new StringBuilder("topics");
                for (ActiveMQTopic topic : connection.getDestinationSource().getTopics()) {
                    names.append(' ').append(topic.getTopicName());
                }
                out.println(names);
                break;
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    private void send(String topic, String cell, String text, String correlation)
            throws JMSException {
        TextMessage message = sending.createTextMessage(text);
        message.setJMSCorrelationID(correlation);
        message.setStringProperty("__PERSONIUM_CELL", cell);
        message.setStringProperty("__PERSONIUM_MESSAGE_ID", UUID.randomUUID().toString());
        producer.send(new ActiveMQTopic(topic), message);
    }

    private void subscribe(String name) throws JMSException {
        Session session = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
        Topic topic = new ActiveMQTopic(name);
        session.createConsumer(topic).setMessageListener(message -> {
            try {
                show(name, message);
            } catch (Exception error) {
                out.println("unreadable " + name + " " + error.getClass().getName());
            }
        });
    }

    private static void show(String topic, Message message) throws JMSException {
        if (!(message instanceof TextMessage)) {
            out.println("other " + topic + " " + message.getClass().getSimpleName());
            return;
        }
        String mode = message.getJMSDeliveryMode() == DeliveryMode.NON_PERSISTENT ? "memory" : "disk";
        out.println(String.join(" ", "message", topic,
                encode(message.getStringProperty("__PERSONIUM_CELL")),
                message.getStringProperty("__PERSONIUM_MESSAGE_ID"),
                mode,
                Long.toString(message.getJMSExpiration() - message.getJMSTimestamp()),
                encode(((TextMessage) message).getText())));
    }

    // new String and getBytes would replace lone surrogates.

    private static String decode(String word) {
        byte[] bytes = Base64.getDecoder().decode(word);
        StringBuilder text = new StringBuilder();
        for (int index = 0; index < bytes.length; index += 2) {
            text.append((char) ((bytes[index] & 0xff) << 8 | bytes[index + 1] & 0xff));
        }
        return text.toString();
    }

    private static String encode(String text) {
        byte[] bytes = new byte[text.length() * 2];
        for (int index = 0; index < text.length(); index++) {
            bytes[2 * index] = (byte) (text.charAt(index) >> 8);
            bytes[2 * index + 1] = (byte) text.charAt(index);
        }
        return Base64.getEncoder().encodeToString(bytes);
    }
}
